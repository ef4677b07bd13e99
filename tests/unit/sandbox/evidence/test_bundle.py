"""Bundles: what is exported, and that it is fine elsewhere."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import rfc8785

from arsandbox.sandbox.errors import StateError, UsageError
from arsandbox.sandbox.evidence.bundle import MANIFEST, RECORDS, SIGNATURE, export
from arsandbox.sandbox.evidence.check import Report, check_bundle
from arsandbox.sandbox.ledger import Ledger
from arsandbox.sandbox.models import Verdict
from arsandbox_fixtures.evidence import (
    BASE_ID,
    BRANCH,
    LOSER,
    SECOND,
    WINNER,
    World,
    members,
    sha256,
)
from arsandbox_fixtures.records import MakeRecord


def check_elsewhere(bundle: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`arsandbox verify` as a stranger runs it: no state, no repository, in an empty directory."""
    place = bundle.parent / f"elsewhere-{os.urandom(4).hex()}"
    place.mkdir()
    environment = {**os.environ, "ARSANDBOX_HOME": str(place / "home"), "HOME": str(place)}
    program = "from arsandbox.cli.app import main; main()"
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, "verify", str(bundle), *arguments],
        cwd=place, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert not list(place.iterdir()), "checking wrote something"
    return done


@pytest.mark.parametrize("artifacts", [False, True])
def test_a_bundle_of_one_experiment_is_fine_elsewhere(artifacts: bool, world: World) -> None:
    bundle = world.export(experiment=WINNER, artifacts=artifacts)
    keyid = world.signer.public_key.keyid
    report = check_bundle(bundle, keyid=keyid)
    assert report == Report(keyid=keyid, whole_ledger=False, records=[BASE_ID, WINNER], problems=[])
    names = set(members(bundle))
    expected = {MANIFEST, SIGNATURE, RECORDS, f"commits/{world.records[WINNER].promotion.commit}"}  # type: ignore[union-attr]
    for identity in (BASE_ID, WINNER):
        expected |= {f"experiments/{identity}/{n}" for n in ("patch.diff", "train.log", "evaluate.log")}
        expected |= {f"statements/{identity}.{kind}.json" for kind in ("provenance", "score")}
        expected |= {f"experiments/{identity}/artifacts/out/model.bin"} if artifacts else set()
    assert names == expected | {f"statements/{WINNER}.promotion.json"}
    done = check_elsewhere(bundle)
    assert done.returncode == 0, done.stderr
    assert keyid in done.stderr and "compare the key id" in done.stderr
    assert check_elsewhere(bundle, "--key", keyid).returncode == 0
    assert check_elsewhere(bundle, "--key", "0" * 64).returncode == 3


def test_a_bundle_of_a_branch_holds_the_whole_chain(world: World) -> None:
    bundle = world.export(branch=BRANCH)
    report = check_bundle(bundle)
    assert (report.whole_ledger, report.records, report.problems) == (True, [WINNER, SECOND], [])
    with Ledger.open(world.repository.state) as ledger:
        assert members(bundle)[RECORDS] == b"".join(d.encode() + b"\n" for d in ledger.documents())
    assert check_elsewhere(bundle).returncode == 0


def test_the_same_ledger_and_key_give_the_same_bundle(world: World) -> None:
    one, two = world.export("1.tar", branch=BRANCH), world.export("2.tar", branch=BRANCH)
    assert one.read_bytes() == two.read_bytes()
    with tarfile.open(one) as archive:
        for entry in archive:
            assert (entry.uid, entry.gid, entry.uname, entry.gname, entry.mtime) == (0, 0, "", "", 0)
            assert entry.isreg() and entry.mode == 0o644


def test_nothing_of_the_key_or_of_other_experiments_is_exported(world: World) -> None:
    bundle = world.export(experiment=WINNER, artifacts=True).read_bytes()
    assert b"PRIVATE KEY" not in bundle and world.signer.private_bytes not in bundle
    assert LOSER.encode() not in bundle and SECOND.encode() not in bundle


def test_what_cannot_be_exported_is_said_and_nothing_is_written(world: World) -> None:
    for options in ({"experiment": "none"}, {"branch": "arsandbox/none"}):
        with pytest.raises(UsageError):
            world.export("x.tar", **options)
    (world.place / "there.tar").write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        world.export("there.tar", experiment=WINNER)
    assert (world.place / "there.tar").read_text() == "mine"
    assert not (world.place / "x.tar").exists()
    with pytest.raises(StateError):
        export(world.repository, world.place / "none" / "x.tar", world.signer, experiment=WINNER)


def test_names_with_unusual_line_ends_do_not_break_a_bundle(world: World, make_record: MakeRecord) -> None:
    """U+2028 and friends are legal in file names and JSON strings; only \\n ends a line of records.jsonl."""
    patch = world.records[LOSER].patch.model_copy(update={"files": ("a\u2028b\u0085c.py",)})
    record = make_record("20240102-030405-009-000009", patch=patch, verdict=Verdict.DISCARD)
    with Ledger.open(world.repository.state) as ledger:
        ledger.append(record)
    assert check_bundle(world.export("one.tar", experiment=record.id)).problems == []
    assert check_bundle(world.export("all.tar", branch=BRANCH)).problems == []


def test_a_record_of_the_first_schema_can_be_exported(world: World) -> None:
    """Its stored text lacks the newer fields and stays as it is."""
    document = json.loads(world.records[LOSER].model_dump_json())
    for name in ("conditions", "determinism", "rerun", "ledger_hash"):
        del document[name]
    document |= {"schema_version": 1, "id": "20230101-000000-000-00000a"}
    document["ledger_hash"] = sha256(rfc8785.dumps(document))
    connection = sqlite3.connect(world.repository.state / "ledger.db")
    connection.execute(
        "INSERT INTO records (id, branch, setup, verdict, tree, document, hash) VALUES (?,?,?,?,?,?,?)",
        (document["id"], BRANCH, "f" * 64, "discard", document["candidate_tree"], json.dumps(document),
         document["ledger_hash"]),
    )  # fmt: skip
    connection.commit()
    connection.close()
    assert check_bundle(world.export(experiment=document["id"])).problems == []

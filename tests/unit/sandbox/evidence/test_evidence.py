"""Signed statements and bundles, checked by other programs' code, and every tampering with them found."""

from __future__ import annotations

import base64
import copy
import dataclasses
import hashlib
import inspect
import io
import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner, SSlibKey

from arsandbox.sandbox import audit, candidate, promotion
from arsandbox.sandbox.errors import ArsandboxError, MachineError, RefusedError, StateError, UsageError
from arsandbox.sandbox.evidence import keys
from arsandbox.sandbox.evidence.bundle import MANIFEST, MANIFEST_TYPE, RECORDS, SIGNATURE, export
from arsandbox.sandbox.evidence.check import Report, check_bundle
from arsandbox.sandbox.evidence.statement import PAYLOAD_TYPE, sign, statements
from arsandbox.sandbox.ledger import Ledger, record_hash
from arsandbox.sandbox.models import Reason, Stage, Termination, Usage, Verdict
from arsandbox.sandbox.record import Baseline, MetricInfo, Promotion, Record, StageRecord
from arsandbox.sandbox.repository import Repository

MakeRecord = Callable[..., Record]
BRANCH = "arsandbox/t"
IDS = [f"20240102-030405-{n:03d}-{n:06x}" for n in range(1, 5)]
BASE_ID, WINNER, LOSER, SECOND = IDS
# An ASCII byte stays ASCII, so that texts stay readable and only their meaning changes.
FLIP = 0x01


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# --- a ledger with a baseline, a loser and two promotions -------------------------------------------------


@dataclasses.dataclass
class World:
    """A repository with real promoted commits, and its ledger."""

    repository: Repository
    signer: CryptoSigner
    records: dict[str, Record]
    place: Path

    def export(self, name: str = "a.tar", **options: Any) -> Path:
        target = self.place / name
        export(self.repository, target, self.signer, **options)
        return target

    def files(self, identity: str) -> Path:
        return self.repository.state / "experiments" / identity


def stage(kind: Stage, log: bytes) -> StageRecord:
    ended = Termination(reason=Reason.COMPLETED, exit_code=0, signal=None, detail="it ended")
    return StageRecord(
        stage=kind, termination=ended, usage=Usage(), started_at="2024-01-02T03:04:05.678Z", wall_s=1.0,
        log_sha256=sha256(log), log_truncated=False,
    )  # fmt: skip


def build(place: Path, make_repo: Callable[..., Any], make_record: MakeRecord) -> World:
    source = make_repo({"train.py": "x = 1\n", "README.md": "a task\n"}, name="task")
    repository = Repository.open(source.path)
    base = repository.head()
    objects = repository.objects
    records: dict[str, Record] = {}
    stored_patch = place / "edit.patch"
    with Ledger.open(repository.state) as ledger:
        for number, identity in enumerate(IDS):
            if identity == BASE_ID:
                made = candidate.from_commit(objects, base, base)
            else:
                text = f"x = {number + 1}\n"
                stored_patch.write_text(
                    f"--- a/train.py\n+++ b/train.py\n@@ -1 +1 @@\n-x = 1\n+{text}", encoding="utf-8"
                )
                made = candidate.from_patch(objects, base, stored_patch)
            home = repository.state / "experiments" / identity
            (home / "artifacts" / "out").mkdir(parents=True)
            train, evaluate, artifact = (f"{word} {number}\n".encode() * 20 for word in ("train", "evaluate", "model"))
            (home / "train.log").write_bytes(train)
            (home / "evaluate.log").write_bytes(evaluate)
            (home / "patch.diff").write_bytes(made.diff)
            (home / "artifacts" / "out" / "model.bin").write_bytes(artifact)
            verdict = {BASE_ID: Verdict.BASELINE, LOSER: Verdict.DISCARD}.get(identity, Verdict.KEEP)
            value = 1.5 - 0.1 * number
            record = make_record(
                identity,
                branch=BRANCH,
                base_commit=base,
                candidate_tree=made.tree,
                patch=made.patch,
                verdict=verdict,
                description=f"edit {number} é",
                metric=MetricInfo(name="val_bpb", goal="min", value=value, source="evaluate"),
                metrics={"val_bpb": value},
                data_sha256="7" * 64,
                baseline=None if identity == BASE_ID else Baseline(experiment=BASE_ID, value=1.5),
                stages=(stage(Stage.TRAIN, train), stage(Stage.EVALUATE, evaluate)),
                artifacts={"out/model.bin": sha256(artifact)},
                environment={"arsandbox": "0.1.0", "cpu": "a processor"},
                determinism={"ARSANDBOX_SEED": "7"},
            )
            if verdict is Verdict.KEEP:
                tip = repository.branch_tip(BRANCH)
                takes = inspect.signature(promotion.prepare).parameters
                where: dict[str, Any] = {"base": base} if "base" in takes else {"parent": tip or base, "old": tip}
                ready = promotion.prepare(
                    repository, record, candidate=made.commit, branch=BRANCH, ledger_head=ledger.head(), **where
                )
                record = record.model_copy(update={"promotion": Promotion(commit=ready.commit, ref=ready.ref)})
                assert promotion.publish(repository, ready)
            records[identity] = ledger.append(record)
    return World(repository, CryptoSigner.generate_ed25519(), records, place)


@pytest.fixture
def world(tmp_path: Path, make_repo: Callable[..., Any], make_record: MakeRecord) -> World:
    return build(tmp_path, make_repo, make_record)


# --- bundles taken apart and put together again -----------------------------------------------------------


def members(bundle: Path) -> dict[str, bytes]:
    with tarfile.open(bundle) as archive:
        found = {}
        for entry in archive:
            file = archive.extractfile(entry)
            assert file is not None
            found[entry.name] = file.read()
    return found


def pack(target: Path, content: dict[str, bytes] | list[tuple[str, bytes]], *extra: tarfile.TarInfo) -> Path:
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in content.items() if isinstance(content, dict) else content:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
        for entry in extra:
            archive.addfile(entry)
    return target


def outcome(bundle: Path, keyid: str | None = None) -> list[str]:
    """The problems found, or the refusal; anything that is no answer of ours fails the test."""
    try:
        return check_bundle(bundle, keyid=keyid).problems
    except (RefusedError, UsageError) as error:
        return [error.message]


def resigned(content: dict[str, bytes], signer: CryptoSigner, **changes: Any) -> dict[str, bytes]:
    """The bundle with a manifest that fits its files, signed anew by `signer`; statements are left as they are."""
    manifest = json.loads(content[MANIFEST])
    manifest["key"] = {"keyid": signer.public_key.keyid, **signer.public_key.to_dict()}
    manifest["files"] = {n: sha256(d) for n, d in sorted(content.items()) if n not in (MANIFEST, SIGNATURE)}
    manifest.update(changes)
    payload = rfc8785.dumps(manifest)
    return {**content, MANIFEST: payload, SIGNATURE: sign(payload, MANIFEST_TYPE, signer)}


def pae(payload_type: bytes, payload: bytes) -> bytes:
    """DSSE v1: "DSSEv1" SP LEN(type) SP type SP LEN(body) SP body."""
    return b" ".join(
        [b"DSSEv1", str(len(payload_type)).encode(), payload_type, str(len(payload)).encode(), payload]
    )  # fmt: skip


# --- keys -------------------------------------------------------------------------------------------------


def test_a_new_key_is_private_and_shown_by_its_id(arsandbox_home: Path) -> None:
    made = keys.new_key()
    path = keys.key_path()
    assert path == arsandbox_home / "keys" / "signing.pem"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    shown = keys.public_key()
    assert (shown.keyid, shown.keyval) == (made.keyid, made.keyval)
    assert shown.keytype == "ed25519" and len(bytes.fromhex(shown.keyval["public"])) == 32
    assert sorted(p.name for p in path.parent.iterdir()) == ["signing.pem"]


def test_a_wide_umask_does_not_make_the_key_readable() -> None:
    before = os.umask(0)
    try:
        keys.new_key()
    finally:
        os.umask(before)
    assert stat.S_IMODE(keys.key_path().stat().st_mode) == 0o600


def test_a_key_is_not_overwritten_but_by_force() -> None:
    first = keys.new_key()
    content = keys.key_path().read_bytes()
    with pytest.raises(UsageError, match="there is a signing key") as caught:
        keys.new_key()
    assert caught.value.exit_code == 2 and keys.key_path().read_bytes() == content
    second = keys.new_key(force=True)
    assert second.keyid != first.keyid == SSlibKey.from_dict(first.keyid, first.to_dict()).keyid
    assert keys.public_key().keyid == second.keyid


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610, 0o601])
def test_a_key_that_others_may_use_is_refused_with_exit_3(mode: int) -> None:
    keys.new_key()
    keys.key_path().chmod(mode)
    with pytest.raises(RefusedError, match="can be read by others") as caught:
        keys.load_signer()
    assert caught.value.exit_code == 3 and "chmod 600" in caught.value.hint
    keys.key_path().chmod(0o600)
    keys.load_signer()


def test_no_key_and_a_broken_key_are_told_apart() -> None:
    with pytest.raises(MachineError, match="no signing key") as caught:
        keys.load_signer()
    assert (caught.value.exit_code, caught.value.hint) == (4, "arsandbox key new")
    keys.new_key()
    keys.key_path().write_text("-----BEGIN PRIVATE KEY-----\nnothing\n-----END PRIVATE KEY-----\n")
    with pytest.raises(StateError, match="not a private key"):
        keys.load_signer()


# --- statements -------------------------------------------------------------------------------------------


def test_statements_are_canonical_and_a_function_of_the_record(world: World) -> None:
    record = world.records[WINNER]
    made = statements(record)
    assert set(made) == {"provenance", "score", "promotion"}
    assert set(statements(world.records[LOSER])) == {"provenance", "score"}
    for payload in made.values():
        assert payload == rfc8785.dumps(json.loads(payload))
    again = Record.model_validate_json(record.model_dump_json())
    assert statements(again) == made
    program = (
        "import sys\nfrom arsandbox.sandbox.evidence.statement import statements\n"
        "from arsandbox.sandbox.record import Record\n"
        "made = statements(Record.model_validate_json(sys.stdin.buffer.read()))\n"
        "sys.stdout.buffer.write(b'\\n'.join(made[k] for k in sorted(made)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], input=record.model_dump_json().encode(), capture_output=True, check=True,
        env={**os.environ, "PYTHONHASHSEED": "1"},
    )  # fmt: skip
    assert done.stdout == b"\n".join(made[kind] for kind in sorted(made))


def test_a_statement_has_in_toto_s_layout_and_provenance_slsa_s(world: World) -> None:
    record = world.records[WINNER]
    types = {
        "provenance": "https://slsa.dev/provenance/v1",
        "score": "urn:arsandbox:predicate:score:v1",
        "promotion": "urn:arsandbox:predicate:promotion:v1",
    }
    made = {kind: json.loads(payload) for kind, payload in statements(record).items()}
    for kind, statement in made.items():
        assert set(statement) == {"_type", "subject", "predicateType", "predicate"}
        assert statement["_type"] == "https://in-toto.io/Statement/v1"
        assert statement["predicateType"] == types[kind]
        digests = {entry["name"]: entry["digest"] for entry in statement["subject"]}
        assert digests == {
            "candidate": {"gitTree": record.candidate_tree},
            "patch.diff": {"sha256": record.patch.sha256},
            "out/model.bin": {"sha256": record.artifacts["out/model.bin"]},
        }
    provenance = made["provenance"]["predicate"]
    assert set(provenance) == {"buildDefinition", "runDetails"}
    definition, details = provenance["buildDefinition"], provenance["runDetails"]
    assert definition["buildType"] == "urn:arsandbox:experiment:v1"
    assert definition["externalParameters"] == {
        "command": ["python", "train.py"], "budget_s": 300, "grace_s": 30, "seed": 7,
    }  # fmt: skip
    dependencies = [entry["digest"] for entry in definition["resolvedDependencies"]]
    assert dependencies == [{"gitCommit": record.base_commit}, {"sha256": "d" * 64}, {"sha256": "7" * 64}]
    assert details["builder"]["id"] == "urn:arsandbox:controller"
    assert details["builder"]["version"] == {"arsandbox": "0.1.0", "engine": "docker 1"}
    metadata = details["metadata"]
    assert metadata["invocationId"] == record.id
    for moment in (metadata["startedOn"], metadata["finishedOn"]):
        assert moment.endswith("Z") and "T" in moment
    logs = {entry["name"]: entry["digest"]["sha256"] for entry in details["byproducts"]}
    assert logs == {f"{s.stage.value}.log": s.log_sha256 for s in record.stages}
    score = made["score"]["predicate"]
    assert (score["metric"]["value"], score["trust"], score["verdict"]) == (1.4, "L2", "keep")
    assert score["ledger_hash"] == record.ledger_hash
    assert record.promotion is not None
    assert made["promotion"]["predicate"]["promotion"]["commit"] == record.promotion.commit


@pytest.mark.parametrize("kind", ["provenance", "score", "promotion"])
def test_an_envelope_is_verified_by_two_other_implementations(kind: str, world: World) -> None:
    payload = statements(world.records[WINNER])[kind]
    raw = sign(payload, PAYLOAD_TYPE, world.signer)
    assert raw == rfc8785.dumps(json.loads(raw))
    document = json.loads(raw)
    assert document["payloadType"] == "application/vnd.in-toto+json"
    # securesystemslib's own word
    accepted = Envelope.from_dict(copy.deepcopy(document)).verify([world.signer.public_key], 1)
    assert list(accepted) == [world.signer.public_key.keyid]
    # and by hand, from the DSSE specification
    assert base64.b64decode(document["payload"], validate=True) == payload
    (signature,) = document["signatures"]
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(world.signer.public_key.keyval["public"]))
    one = base64.b64decode(signature["sig"], validate=True)
    public.verify(one, pae(document["payloadType"].encode(), payload))
    for wrong in (
        pae(b"application/json", payload), pae(PAYLOAD_TYPE.encode(), payload + b" "), payload,
    ):  # fmt: skip
        with pytest.raises(InvalidSignature):
            public.verify(one, wrong)


# --- export and check -------------------------------------------------------------------------------------


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


# --- tampering: bytes -------------------------------------------------------------------------------------

CLASSES = {
    "records": RECORDS,
    "manifest": MANIFEST,
    "signature": SIGNATURE,
    "statement": f"statements/{WINNER}.score.json",
    "promotion statement": f"statements/{WINNER}.promotion.json",
    "patch": f"experiments/{WINNER}/patch.diff",
    "log": f"experiments/{WINNER}/train.log",
    "artifact": f"experiments/{WINNER}/artifacts/out/model.bin",
    "commit": "commits/",
}


def named(content: dict[str, bytes], kind: str) -> str:
    return next(name for name in content if name.startswith(CLASSES[kind]))


@pytest.mark.parametrize("kind", list(CLASSES))
def test_any_flipped_byte_of_a_file_is_found_and_named(kind: str, world: World) -> None:
    content = members(world.export(experiment=WINNER, artifacts=True))
    name = named(content, kind)
    size = len(content[name])
    for position in sorted({*range(0, size, max(1, size // 40)), size - 1}):
        for mask in (FLIP, 0x80):
            changed = bytearray(content[name])
            changed[position] ^= mask
            found = outcome(pack(world.place / "b.tar", {**content, name: bytes(changed)}))
            assert found, f"byte {position} of {name} was changed and not found"
            if kind not in ("manifest", "signature"):
                assert f"{name} was changed" in found, found


def test_every_single_byte_of_the_signature_counts(world: World) -> None:
    """base64 has more than one spelling of the same bytes; only the one that was written is accepted."""
    content = members(world.export(experiment=LOSER))
    manifest, signature = content[MANIFEST], content[SIGNATURE]
    loose = []
    tail = range(len(signature) - 300, len(signature))
    payload_end = signature.index(b'"', signature.index(b'"payload":"') + 11)
    for position in {*tail, *range(payload_end - 8, payload_end + 1)}:
        for mask in (0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40):
            changed = bytearray(signature)
            changed[position] ^= mask
            if not outcome(pack(world.place / "b.tar", {**content, SIGNATURE: bytes(changed)})):
                loose.append((position, mask, bytes(signature[position - 4 : position + 3])))
    assert content[MANIFEST] == manifest
    assert not loose, f"{len(loose)} changes of the signature's bytes are not found, as {loose[:3]}"


# --- tampering: members -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(CLASSES))
def test_a_removed_file_is_found_and_named(kind: str, world: World) -> None:
    content = members(world.export(experiment=WINNER, artifacts=True))
    name = named(content, kind)
    found = outcome(pack(world.place / "b.tar", {n: d for n, d in content.items() if n != name}))
    assert found and any(name in line for line in found), found


@pytest.mark.parametrize(
    "name",
    ["extra", "experiments/x/patch.diff", f"experiments/{WINNER}/artifacts/out/other", "statements/x.json",
     "./bundle.json", "./records.jsonl", "a\nb", "commits/" + "0" * 40],
)  # fmt: skip
def test_an_added_file_is_found_and_named_in_one_line(name: str, world: World) -> None:
    content = members(world.export(experiment=WINNER))
    for items in ([*content.items(), (name, b"x")], [(name, b"x"), *content.items()]):
        found = outcome(pack(world.place / "b.tar", items))
        assert found and all("\n" not in line for line in found)
        assert any(ascii(name) in line for line in found), found


@pytest.mark.parametrize("kind", list(CLASSES))
def test_a_file_that_is_there_twice_is_refused(kind: str, world: World) -> None:
    content = members(world.export(experiment=WINNER, artifacts=True))
    name = named(content, kind)
    for copy_of in (content[name], b"other"):
        for items in ([*content.items(), (name, copy_of)], [(name, copy_of), *content.items()]):
            with pytest.raises(RefusedError, match="twice"):
                check_bundle(pack(world.place / "b.tar", items))


@pytest.mark.parametrize("kind", ["SYMTYPE", "LNKTYPE", "FIFOTYPE", "CHRTYPE", "BLKTYPE", "DIRTYPE"])
def test_what_is_no_file_is_refused(kind: str, world: World) -> None:
    content = members(world.export(experiment=WINNER))
    entry = tarfile.TarInfo(f"experiments/{WINNER}/link")
    entry.type = getattr(tarfile, kind)
    entry.linkname = "/etc/passwd" if kind == "SYMTYPE" else RECORDS
    with pytest.raises(RefusedError, match="has no place in a bundle"):
        check_bundle(pack(world.place / "b.tar", content, entry))
    # also in the place of a file that belongs there
    name = f"experiments/{WINNER}/patch.diff"
    entry.name = name
    with pytest.raises(RefusedError):
        check_bundle(pack(world.place / "b.tar", {n: d for n, d in content.items() if n != name}, entry))


@pytest.mark.parametrize("name", ["../x", "/x", "experiments/../../x", "a/..", "/etc/passwd"])
def test_a_file_outside_is_refused(name: str, world: World) -> None:
    content = members(world.export(experiment=WINNER))
    with pytest.raises(RefusedError, match="has no place in a bundle"):
        check_bundle(pack(world.place / "b.tar", [*content.items(), (name, b"x")]))
    assert not (world.place.parent / "x").exists()


def test_checking_extracts_nothing(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = world.export(experiment=WINNER, artifacts=True)
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    monkeypatch.setenv("ARSANDBOX_HOME", str(empty / "home"))
    assert check_bundle(bundle).problems == []
    assert list(empty.iterdir()) == []


# --- tampering: meaning -----------------------------------------------------------------------------------


def forge(content: dict[str, bytes], identity: str, **changes: Any) -> dict[str, bytes]:
    """The bundle with a record that says something else, its hash made to fit."""
    lines = []
    for line in content[RECORDS].decode().splitlines():
        record = Record.model_validate_json(line)
        if record.id == identity:
            record = record.model_copy(update=changes)
            record = record.model_copy(update={"ledger_hash": record_hash(record)})
            line = record.model_dump_json()
        lines.append(line)
    return {**content, RECORDS: "".join(f"{line}\n" for line in lines).encode()}


BETTER = {"metric": MetricInfo(name="val_bpb", goal="min", value=0.5, source="evaluate")}


def test_a_forged_record_with_the_old_signatures_is_found(world: World) -> None:
    content = members(world.export(experiment=WINNER))
    found = outcome(pack(world.place / "b.tar", forge(content, WINNER, **BETTER)))
    assert f"{RECORDS} was changed" in found
    assert f"record {WINNER}: its score statement says something else" in found


def test_records_that_are_swapped_are_found(world: World) -> None:
    content = members(world.export(branch=BRANCH))
    lines = content[RECORDS].splitlines(keepends=True)
    for order in ([1, 0, 2, 3], [0, 1, 3], [0, 1, 2, 3, 3]):
        changed = {**content, RECORDS: b"".join(lines[n] for n in order)}
        assert f"{RECORDS} was changed" in outcome(pack(world.place / "b.tar", changed))


def test_another_s_signature_is_accepted_only_where_no_key_is_asked_for(world: World) -> None:
    ours = world.signer.public_key.keyid
    other = CryptoSigner.generate_ed25519()
    theirs = World(world.repository, other, world.records, world.place).export("theirs.tar", experiment=WINNER)
    report = check_bundle(theirs)
    assert (report.keyid, report.problems) == (other.public_key.keyid, [])
    assert check_bundle(theirs, keyid=other.public_key.keyid).problems == []
    with pytest.raises(RefusedError, match=f"signed by {other.public_key.keyid}, not by {ours}"):
        check_bundle(theirs, keyid=ours)


def test_a_manifest_signed_anew_does_not_make_old_statements_valid(world: World) -> None:
    content = members(world.export(experiment=WINNER))
    other = CryptoSigner.generate_ed25519()
    found = outcome(pack(world.place / "b.tar", resigned(content, other)))
    kinds = ("provenance", "score", "promotion")
    assert {f"record {WINNER}: the signature of its {kind} statement does not hold" for kind in kinds} <= set(found)


def test_the_signature_of_another_manifest_is_refused(world: World) -> None:
    one, two = members(world.export("1.tar", experiment=WINNER)), members(world.export("2.tar", experiment=LOSER))
    with pytest.raises(RefusedError, match="does not fit"):
        check_bundle(pack(world.place / "b.tar", {**one, SIGNATURE: two[SIGNATURE]}))
    # A statement's envelope is no manifest's, even over the same bytes.
    envelope = sign(one[MANIFEST], PAYLOAD_TYPE, world.signer)
    with pytest.raises(RefusedError, match="does not fit"):
        check_bundle(pack(world.place / "b.tar", {**one, SIGNATURE: envelope}))


def test_a_key_id_that_does_not_belong_to_the_key_is_refused(world: World) -> None:
    """Else a forger would call his key by our name, and --key would believe it."""
    content = members(world.export(experiment=WINNER))
    ours, forger = world.signer.public_key.keyid, CryptoSigner.generate_ed25519()
    lying = SSlibKey(ours, "ed25519", "ed25519", dict(forger.public_key.keyval))
    signer = CryptoSigner(forger._private_key, lying)
    assert signer.public_key.keyid == ours
    forged = forge(content, WINNER, **BETTER)
    for line in forged[RECORDS].decode().splitlines():
        record = Record.model_validate_json(line)
        for kind, payload in statements(record).items():
            forged[f"statements/{record.id}.{kind}.json"] = sign(payload, PAYLOAD_TYPE, signer)
    bundle = pack(world.place / "b.tar", resigned(forged, signer))
    for keyid in (ours, None):
        with pytest.raises(RefusedError, match="key id does not belong to the key"):
            check_bundle(bundle, keyid=keyid)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"candidate_tree": "1" * 40}, "has another tree than the measured one"),
        ({"patch": "other"}, "patch.diff is not what the record names"),
        ({"id": "20240102-030405-002-0000ff"}, "is missing"),
    ],
)
def test_even_the_signer_s_own_bundle_must_be_consistent(changes: dict[str, Any], words: str, world: World) -> None:
    content = members(world.export(experiment=WINNER))
    if "patch" in changes:
        changes = {"patch": world.records[WINNER].patch.model_copy(update={"sha256": "1" * 64})}
    forged = forge(content, WINNER, **changes)
    found = outcome(pack(world.place / "b.tar", resigned(forged, world.signer)))
    assert any(words in line for line in found), found


def test_a_chain_that_is_broken_is_found_though_the_owner_signed_it(world: World) -> None:
    content = members(world.export(branch=BRANCH))
    lines = content[RECORDS].splitlines(keepends=True)
    shorter = {**content, RECORDS: b"".join(lines[:2] + lines[3:])}
    found = outcome(pack(world.place / "b.tar", resigned(shorter, world.signer)))
    assert any(SECOND in line and "removed, added or reordered" in line for line in found), found


def test_a_commit_of_another_experiment_is_found(world: World) -> None:
    content = members(world.export(branch=BRANCH))
    other = world.records[SECOND].promotion
    assert other is not None
    forged = forge(content, WINNER, promotion=other)
    found = outcome(pack(world.place / "b.tar", resigned(forged, world.signer)))
    assert any("lacks its trailer" in line or "another tree" in line for line in found), found


# --- what is no bundle ------------------------------------------------------------------------------------


def test_a_truncated_bundle_is_found_wherever_it_ends(world: World) -> None:
    whole = world.export(experiment=WINNER).read_bytes()
    end = len(whole.rstrip(b"\0"))
    cut = world.place / "cut.tar"
    for size in [0, 1, 511, 512, 600, *range(1024, end, 3333), end - 1]:
        cut.write_bytes(whole[:size])
        assert outcome(cut), f"cut at {size} of {end}"


@pytest.mark.parametrize(
    "content",
    [b"", b"not a tar", bytes(10240), b"PK\x03\x04" + bytes(2000), b"\x1f\x8b" + bytes(2000), os.urandom(4096)],
)
def test_what_is_no_tar_is_a_usage_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(UsageError, match="not a bundle"):
        check_bundle(tmp_path / "x")


def test_a_missing_file_and_a_directory_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        check_bundle(tmp_path / "none")
    with pytest.raises(UsageError):
        check_bundle(tmp_path)


def test_a_compressed_bundle_is_no_bundle(world: World) -> None:
    """Nothing is unpacked, so nothing can blow up."""
    import gzip

    bundle = world.export(experiment=WINNER)
    (world.place / "b.tar.gz").write_bytes(gzip.compress(bundle.read_bytes()))
    with pytest.raises(UsageError, match="not a bundle"):
        check_bundle(world.place / "b.tar.gz")


HOSTILE_MANIFESTS: dict[str, Any] = {
    "files is a list": {"files": []},
    "files is null": {"files": None},
    "a digest is a number": {"files": {RECORDS: 5}},
    "records is null": {"records": None},
    "records is a number": {"records": 5},
    "records holds lists": {"records": [[1]]},
    "another format": {"format": 2},
    "no format": {"format": None},
    "key is null": {"key": None},
    "key is a list": {"key": []},
    "public is no hex": {"key": {"keyid": "x", "keytype": "ed25519", "scheme": "ed25519", "keyval": {"public": "zz"}}},
    "no public": {"key": {"keyid": "x", "keytype": "ed25519", "scheme": "ed25519", "keyval": {}}},
    "another kind of key": {"key": {"keyid": "x", "keytype": "rsa", "scheme": "x", "keyval": {"public": "00"}}},
}


@pytest.mark.parametrize("case", list(HOSTILE_MANIFESTS))
def test_a_hostile_manifest_is_an_answer_and_no_crash(case: str, world: World) -> None:
    content = members(world.export(experiment=WINNER))
    bundle = pack(world.place / "b.tar", resigned(content, world.signer, **HOSTILE_MANIFESTS[case]))
    assert outcome(bundle)


@pytest.mark.parametrize("missing", ["files", "records", "whole_ledger", "key", "format"])
def test_a_manifest_that_lacks_something_is_an_answer_and_no_crash(missing: str, world: World) -> None:
    content = members(world.export(experiment=WINNER))
    manifest = json.loads(content[MANIFEST])
    del manifest[missing]
    payload = rfc8785.dumps(manifest)
    content |= {MANIFEST: payload, SIGNATURE: sign(payload, MANIFEST_TYPE, world.signer)}
    assert outcome(pack(world.place / "b.tar", content))


@pytest.mark.parametrize("name", [MANIFEST, SIGNATURE])
def test_deeply_nested_json_is_an_answer_and_no_crash(name: str, world: World) -> None:
    content = members(world.export(experiment=WINNER))
    assert outcome(pack(world.place / "b.tar", {**content, name: b"[" * 100_000}))


@pytest.mark.parametrize(
    "change", [{"seed": 2**60}, {"environment": {"a": "\x00"}}, {"image": "no digest"}, {"command": ["\ud800"]}]
)
def test_a_hostile_record_is_an_answer_and_no_crash(change: dict[str, Any], world: World) -> None:
    content = members(world.export(experiment=WINNER))
    lines = content[RECORDS].decode().splitlines()
    document = json.loads(lines[-1])
    if "image" in change:
        change = {"image": {"name": "cpu", "digest": ""}}
    document.update(change)
    lines[-1] = json.dumps(document)
    content[RECORDS] = "".join(f"{line}\n" for line in lines).encode()
    assert outcome(pack(world.place / "b.tar", resigned(content, world.signer)))


# --- claims of size ---------------------------------------------------------------------------------------

LIMITED = """
import resource, sys
from pathlib import Path
from arsandbox.sandbox.errors import ArsandboxError
from arsandbox.sandbox.evidence.check import check_bundle
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (400 << 20),) * 2)
try:
    print(check_bundle(Path(sys.argv[1])).problems)
except ArsandboxError as error:
    print(error.exit_code, error.message)
"""


def check_within_400_mib(bundle: Path, seconds: float = 60) -> str:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(bundle)], capture_output=True, text=True, check=False, timeout=seconds
    )
    assert done.returncode == 0, done.stderr[-1500:]
    return done.stdout


@pytest.mark.parametrize("kind", ["REGTYPE", "XHDTYPE", "XGLTYPE", "GNUTYPE_LONGNAME", "GNUTYPE_LONGLINK"])
@pytest.mark.parametrize("name", [RECORDS, "experiments/x/train.log"])
def test_a_header_that_claims_2_gib_allocates_nothing(kind: str, name: str, world: World) -> None:
    whole = world.export(experiment=WINNER).read_bytes()
    header = tarfile.TarInfo(name)
    header.size, header.type = 2 << 30, getattr(tarfile, kind)
    bundle = world.place / "b.tar"
    head, body = header.tobuf(tarfile.GNU_FORMAT), whole.rstrip(b"\0")
    body += bytes(-len(body) % 512)
    for content in (head + whole, body + head + b"x" * 512):
        bundle.write_bytes(content)
        assert check_within_400_mib(bundle).strip() not in ("", "[]")


def sparse_member(name: str, size: int) -> bytes:
    """A GNU sparse file: one header of 512 bytes that stands for `size` zeros."""
    header = tarfile.TarInfo(name)
    header.type = tarfile.GNUTYPE_SPARSE
    buffer = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    field = b"\x80" + size.to_bytes(11, "big")
    buffer[386:398], buffer[398:410] = field, b"\x80" + bytes(11)
    buffer[483:495] = field
    buffer[148:156] = b" " * 8
    buffer[148:156] = b"%06o\0 " % sum(buffer)
    return bytes(buffer)


@pytest.mark.parametrize("name", ["a", "experiments/x/train.log"])
def test_a_sparse_file_does_not_grow_out_of_nothing(name: str, world: World) -> None:
    """A few kilobytes must not cost hours or gigabytes: sparse members have no place in a bundle."""
    whole = world.export(experiment=WINNER).read_bytes().rstrip(b"\0")
    whole += bytes(-len(whole) % 512)
    size = 500 << 20 if name == "a" else 1 << 44
    bombs = b"".join(sparse_member(f"{name}{number}", size) for number in range(4))
    bundle = world.place / "b.tar"
    bundle.write_bytes(bombs + whole + bytes(1024))
    assert bundle.stat().st_size < 200_000
    try:
        said = check_within_400_mib(bundle, seconds=20)
    except subprocess.TimeoutExpired:
        pytest.fail("it reads terabytes of zeros that are not there")
    assert said.startswith("3 "), said


def test_checking_a_large_artifact_keeps_it_out_of_memory(world: World) -> None:
    content = members(world.export(experiment=WINNER))
    content[f"experiments/{WINNER}/artifacts/out/model.bin"] = bytes(300 << 20)
    bundle = pack(world.place / "b.tar", content)
    del content
    # VmHWM, not ru_maxrss: the latter begins with what this process had when it forked.
    program = (
        "import re, sys; from pathlib import Path\n"
        "from arsandbox.sandbox.evidence.check import check_bundle\n"
        "problems = check_bundle(Path(sys.argv[1])).problems\n"
        "print(len(problems), re.search(r'VmHWM:\\s+(\\d+) kB', Path('/proc/self/status').read_text())[1])\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(bundle)], capture_output=True, text=True, check=True)
    found, peak = map(int, done.stdout.split())
    bundle.unlink()
    assert found
    assert peak < 200 * 1024, f"{peak} KiB for a file of 300 MiB"


# --- the repository's own audit ---------------------------------------------------------------------------


@pytest.fixture
def tamper(world: World) -> Iterator[Callable[..., None]]:
    """Change the ledger's database behind its back."""

    def change(*statements: str, parameters: tuple[object, ...] = ()) -> None:
        connection = sqlite3.connect(world.repository.state / "ledger.db")
        try:
            for name in ("records_stay", "records_remain"):
                connection.execute(f"DROP TRIGGER IF EXISTS {name}")
            for statement in statements:
                connection.execute(statement, parameters)
            connection.commit()
        finally:
            connection.close()

    yield change


def rewrite(tamper: Callable[..., None], world: World, identity: str, **changes: Any) -> None:
    """The record says something else, and every hash from it on is made to fit."""
    with Ledger.open(world.repository.state) as ledger:
        records = ledger.latest()[::-1]
    previous = "0" * 64
    for record in records:
        if record.id == identity:
            record = record.model_copy(update=changes)
        record = record.model_copy(update={"previous_hash": previous})
        record = record.model_copy(update={"ledger_hash": record_hash(record)})
        previous = record.ledger_hash
        tamper(
            "UPDATE records SET document = ?, hash = ?, tree = ? WHERE id = ?",
            parameters=(record.model_dump_json(), record.ledger_hash, record.candidate_tree, record.id),
        )
    with Ledger.open(world.repository.state) as ledger:
        assert list(ledger.problems()) == []


def commit_like(world: World, identity: str, *, tree: str | None = None, message: str | None = None) -> str:
    """A commit that looks like the promoted one but for what is given."""
    found = world.records[identity].promotion
    assert found is not None
    git = world.repository.objects.git
    text = git("log", "-1", "--format=%B", found.commit).decode().strip() + "\n"
    environment = {
        **os.environ, "GIT_DIR": str(world.repository.common_directory),
        "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b",
    }  # fmt: skip
    parent = git("rev-parse", f"{found.commit}^").decode().strip()
    done = subprocess.run(
        ["git", "commit-tree", "-p", parent, "-F", "-", tree or world.records[identity].candidate_tree],
        input=message if message is not None else text, text=True, capture_output=True, check=True, env=environment,
    )  # fmt: skip
    return done.stdout.strip()


def tree_with(world: World, content: str) -> str:
    git = ["git", "--git-dir", str(world.repository.common_directory)]
    blob = subprocess.run(
        [*git, "hash-object", "-w", "--stdin"], input=content, text=True, capture_output=True, check=True
    ).stdout.strip()
    made = subprocess.run(
        [*git, "mktree"], input=f"100644 blob {blob}\ttrain.py\n", text=True, capture_output=True, check=True
    )
    return made.stdout.strip()


def point_branch_at(world: World, commit: str) -> None:
    git = ["git", "--git-dir", str(world.repository.common_directory)]
    subprocess.run([*git, "update-ref", f"refs/heads/{BRANCH}", commit], check=True)


def test_a_whole_ledger_and_its_commits_have_no_problems(world: World) -> None:
    assert audit.problems(world.repository) == []
    shutil.rmtree(world.files(LOSER))  # what may be cleaned up is not missed
    assert audit.problems(world.repository) == []


def test_a_record_that_names_a_commit_without_its_trailer_is_found(world: World, tamper: Callable[..., None]) -> None:
    forged = commit_like(world, SECOND, message="no trailers\n")
    rewrite(tamper, world, SECOND, promotion=Promotion(commit=forged, ref=f"refs/heads/{BRANCH}"))
    found = audit.problems(world.repository)
    assert f"record {SECOND}: commit {forged[:12]} lacks its trailer" in found
    assert any("names a ledger head that this ledger never had" in line for line in found)


def test_a_record_that_names_a_commit_with_another_tree_is_found(world: World, tamper: Callable[..., None]) -> None:
    forged = commit_like(world, SECOND, tree=tree_with(world, "import evil\n"))
    rewrite(tamper, world, SECOND, promotion=Promotion(commit=forged, ref=f"refs/heads/{BRANCH}"))
    found = audit.problems(world.repository)
    assert f"record {SECOND}: commit {forged[:12]} has another tree than the measured one" in found
    assert f"record {SECOND}: commit {forged[:12]} is another patch than the recorded one" in found


def test_tree_and_patch_of_a_record_must_both_fit_its_commit(world: World, tamper: Callable[..., None]) -> None:
    tree = tree_with(world, "import evil\n")
    forged = commit_like(world, SECOND, tree=tree)
    promoted = Promotion(commit=forged, ref=f"refs/heads/{BRANCH}")
    rewrite(tamper, world, SECOND, promotion=promoted, candidate_tree=tree)
    found = audit.problems(world.repository)
    assert found == [f"record {SECOND}: commit {forged[:12]} is another patch than the recorded one"]


def test_a_rewritten_history_does_not_fit_the_heads_that_commits_name(
    world: World, tamper: Callable[..., None]
) -> None:
    """All hashes of the ledger were made anew, but git pins what the ledger was at each promotion."""
    rewrite(tamper, world, BASE_ID, description="something else")
    found = audit.problems(world.repository)
    assert len(found) == 2 and all("names a ledger head that this ledger never had" in line for line in found)


def test_a_commit_that_is_gone_is_found(world: World, tamper: Callable[..., None]) -> None:
    rewrite(tamper, world, SECOND, promotion=Promotion(commit="1" * 40, ref=f"refs/heads/{BRANCH}"))
    assert audit.problems(world.repository) == [
        f"record {SECOND}: its promoted commit {'1' * 12} is not in the repository"
    ]


def test_a_base_commit_that_is_gone_is_an_answer(world: World, tamper: Callable[..., None]) -> None:
    rewrite(tamper, world, SECOND, base_commit="1" * 40)
    found = audit.problems(world.repository)
    assert found and all(SECOND in line for line in found)


@pytest.mark.parametrize("what", ["tree", "trailer"])
def test_a_promotion_branch_that_was_moved_to_a_forgery_is_found(what: str, world: World) -> None:
    """The promoted commit is still an object, but whoever checks the branch out gets something else."""
    if what == "tree":
        forged = commit_like(world, SECOND, tree=tree_with(world, "import evil\n"))
    else:
        forged = commit_like(world, SECOND, message="nothing said\n")
    point_branch_at(world, forged)
    found = audit.problems(world.repository)
    assert found and any(BRANCH in line or forged[:12] in line for line in found), found


def test_commits_on_top_of_a_promotion_are_nobody_s_business(world: World) -> None:
    promoted = world.records[SECOND].promotion
    assert promoted is not None
    git = ["git", "--git-dir", str(world.repository.common_directory), "-c", "user.name=a", "-c", "user.email=a@b"]
    tree = world.records[SECOND].candidate_tree
    done = subprocess.run(
        [*git, "commit-tree", "-p", promoted.commit, "-m", "by hand", tree], capture_output=True, text=True, check=True
    )
    point_branch_at(world, done.stdout.strip())
    assert audit.problems(world.repository) == []


@pytest.mark.parametrize("identity", [BASE_ID, WINNER, LOSER, SECOND])
def test_a_removed_record_is_found(identity: str, world: World, tamper: Callable[..., None]) -> None:
    """The last one, too: its promoted commit names a head of this ledger and an experiment that it lacks."""
    tamper(f"DELETE FROM records WHERE id = '{identity}'")
    assert audit.problems(world.repository)


def test_reordered_records_are_found(world: World, tamper: Callable[..., None]) -> None:
    tamper(
        "UPDATE records SET sequence = 100 WHERE sequence = 2",
        "UPDATE records SET sequence = 2 WHERE sequence = 3",
        "UPDATE records SET sequence = 3 WHERE sequence = 100",
    )
    found = audit.problems(world.repository)
    assert found and all("reordered" in line for line in found)


@pytest.mark.parametrize("column", ["id", "branch", "setup", "verdict", "tree", "hash"])
def test_columns_that_differ_from_an_intact_record_are_found(
    column: str, world: World, tamper: Callable[..., None]
) -> None:
    tamper(f"UPDATE records SET {column} = 'other' WHERE sequence = 2")
    found = audit.problems(world.repository)
    assert len(found) == 1 and "its columns differ from its text" in found[0]


@pytest.mark.parametrize("identity", [WINNER, LOSER])
def test_a_stored_patch_that_was_changed_is_found(identity: str, world: World) -> None:
    patch = world.files(identity) / "patch.diff"
    patch.write_bytes(patch.read_bytes().replace(b"+x", b"+y"))
    assert audit.problems(world.repository) == [f"record {identity}: its stored patch was changed"]


def test_what_the_errors_say_fits_one_line(world: World) -> None:
    bundle = world.place / "x\ny.tar"
    bundle.write_bytes(b"")
    with pytest.raises(ArsandboxError) as caught:
        check_bundle(bundle)
    assert caught.value.exit_code == 2

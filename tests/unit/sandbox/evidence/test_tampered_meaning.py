"""A bundle whose parts were exchanged or signed anew does not mean something else unnoticed."""

from __future__ import annotations

from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner, SSlibKey

from arsandbox.sandbox.errors import RefusedError
from arsandbox.sandbox.evidence.bundle import MANIFEST, RECORDS, SIGNATURE
from arsandbox.sandbox.evidence.check import check_bundle
from arsandbox.sandbox.evidence.statement import PAYLOAD_TYPE, sign, statements
from arsandbox.sandbox.ledger import record_hash
from arsandbox.sandbox.record import MetricInfo, Record
from arsandbox_fixtures.evidence import (
    BRANCH,
    LOSER,
    SECOND,
    WINNER,
    World,
    members,
    outcome,
    pack,
    resigned,
)


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

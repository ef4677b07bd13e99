"""What is no bundle, or a hostile one, gets an answer and crashes nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import rfc8785

from arsandbox.sandbox.errors import UsageError
from arsandbox.sandbox.evidence.bundle import MANIFEST, MANIFEST_TYPE, RECORDS, SIGNATURE
from arsandbox.sandbox.evidence.check import check_bundle
from arsandbox.sandbox.evidence.statement import sign
from arsandbox_fixtures.evidence import (
    WINNER,
    World,
    members,
    outcome,
    pack,
    resigned,
)


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

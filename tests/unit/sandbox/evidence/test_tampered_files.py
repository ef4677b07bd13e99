"""Every tampering with the bytes or the members of a bundle is found and named."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from arsandbox.sandbox.errors import RefusedError
from arsandbox.sandbox.evidence.bundle import MANIFEST, RECORDS, SIGNATURE
from arsandbox.sandbox.evidence.check import check_bundle
from arsandbox_fixtures.evidence import (
    FLIP,
    LOSER,
    WINNER,
    World,
    members,
    outcome,
    pack,
)

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

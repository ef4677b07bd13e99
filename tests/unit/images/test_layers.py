"""Layers: made once, checked, and a function of their contents."""

from __future__ import annotations

import io
import tarfile
import threading
from pathlib import Path

import pytest

from arsandbox.images.layers import LayerCache
from arsandbox.images.tarlayer import EPOCH, Member, file_member, link_member, write_layer
from arsandbox.sandbox.errors import MachineError


# Layers
def test_a_layer_depends_on_contents_only() -> None:
    members = [
        file_member("b/x", b"1", 0o4755),
        link_member("a", "b"),
        Member("c", 0o2777),
        Member("t", 0o1777),
    ]
    first, second = io.BytesIO(), io.BytesIO()
    write_layer(first, members)
    write_layer(second, reversed(members))
    assert first.getvalue() == second.getvalue()
    with tarfile.open(fileobj=io.BytesIO(first.getvalue())) as archive:
        entries = {entry.name: entry for entry in archive}
    assert list(entries) == ["a", "b/x", "c", "t"]
    assert not any(entry.mode & 0o6000 for entry in entries.values())
    assert entries["t"].mode == 0o1777
    assert {(entry.mtime, entry.uid, entry.uname) for entry in entries.values()} == {(EPOCH, 0, "")}


def test_a_cached_layer_is_made_once_and_checked(tmp_path: Path) -> None:
    cache, calls = LayerCache(tmp_path), []

    def make(target: io.BufferedWriter) -> tuple[tuple[str, str], ...]:
        calls.append(1)
        target.write(b"layer")
        return (("libc6", "2.36"),)

    first = cache.obtain("ab", make)  # type: ignore[arg-type]
    assert cache.obtain("ab", make) == first  # type: ignore[arg-type]
    assert first.packages == (("libc6", "2.36"),)
    assert len(calls) == 1
    cache.path(first).write_bytes(b"spoil")
    assert cache.obtain("ab", make) == first  # type: ignore[arg-type]
    assert cache.path(first).read_bytes() == b"layer"
    cache.obtain("ab", make, use_cache=False)  # type: ignore[arg-type]
    assert len(calls) == 3


@pytest.mark.parametrize("failure", [KeyboardInterrupt, MachineError])
def test_an_interrupted_layer_leaves_nothing(tmp_path: Path, failure: type[BaseException]) -> None:
    def make(target: io.BufferedWriter) -> tuple[tuple[str, str], ...]:
        target.write(b"half")
        raise failure("stop")

    with pytest.raises(failure):
        LayerCache(tmp_path).obtain("ab", make)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["ab.lock"]


def test_two_builds_of_one_layer_take_turns(tmp_path: Path) -> None:
    inside, started, go, waited = [], threading.Event(), threading.Event(), threading.Event()

    def slow(target: io.BufferedWriter) -> tuple[tuple[str, str], ...]:
        inside.append("slow")
        started.set()
        assert go.wait(10)
        target.write(b"layer")
        return ()

    def never(target: io.BufferedWriter) -> tuple[tuple[str, str], ...]:
        raise AssertionError("the second build found no layer")

    found = []
    one = threading.Thread(target=lambda: found.append(LayerCache(tmp_path).obtain("ab", slow)))  # type: ignore[arg-type]
    one.start()
    assert started.wait(10)
    two = threading.Thread(
        target=lambda: found.append(LayerCache(tmp_path).obtain("ab", never, waiting=waited.set))  # type: ignore[arg-type]
    )
    two.start()
    assert waited.wait(10)
    go.set()
    one.join(10)
    two.join(10)
    assert len(found) == 2
    assert found[0] == found[1]

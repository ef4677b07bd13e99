"""Pieces of the embedded engine where something goes wrong: what is told, and what stays open."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from arsandbox.sandbox.engines.embedded import cgroups, leftovers
from arsandbox.sandbox.engines.embedded.cgroups import BoxCgroup
from arsandbox.sandbox.engines.embedded.leftovers import Leftover, announced
from arsandbox.sandbox.engines.embedded.output import PipeReader
from arsandbox.sandbox.engines.embedded.process import Box, Descriptors
from arsandbox.sandbox.errors import NotRemovedError


def descriptors() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))


class _Failing:
    def output(self, chunk: bytes) -> None:
        raise RuntimeError("whoever takes the output fails")

    def tick(self, elapsed_s: float, memory_bytes: int) -> None:
        raise AssertionError("not from this thread")


def test_an_error_of_who_takes_the_output_is_kept_and_no_pipe_stays_open() -> None:
    before = descriptors()
    (one, writes_one), (two, writes_two) = os.pipe(), os.pipe()
    os.write(writes_one, b"a line\n")
    reader = PipeReader((one, two), _Failing(), 1000)
    reader.start()
    reader.join(10)
    assert isinstance(reader.error, RuntimeError)
    with pytest.raises(BrokenPipeError):  # a writer does not wait for a reader that is gone
        os.write(writes_two, b"more\n")
    os.close(writes_one)
    os.close(writes_two)
    assert descriptors() == before


def test_a_sandbox_that_cannot_be_started_leaves_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    before = descriptors()
    monkeypatch.setattr("sys.executable", "/nonexistent/python")
    ends = Descriptors()
    with pytest.raises(FileNotFoundError):
        Box("bwrap", [], ["true"], descriptors=ends, sources=(), uid=None, limits={})
    ends.close()
    assert descriptors() == before


def test_a_cgroup_that_stays_is_told_and_stays_announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARSANDBOX_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(cgroups, "_ENDS_S", 0.05)
    monkeypatch.setattr(leftovers, "places", lambda: {"memory": tmp_path})
    left = Leftover.announce("train-x-1", {"a": "b"})
    held = tmp_path / "train-x-1" / "held"  # rmdir refuses, as it does for a cgroup with a process in it
    held.mkdir(parents=True)
    assert not BoxCgroup({"memory": held.parent}).remove()
    with pytest.raises(NotRemovedError, match="train-x-1"):
        left.remove()
    assert [found.name for found in announced()] == ["train-x-1"]
    held.rmdir()
    left.remove()
    assert list(announced()) == [] and not held.parent.exists()


def test_an_announcement_that_a_power_cut_left_empty_ends_nobodys_recovery(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARSANDBOX_HOME", str(tmp_path))
    whole = Leftover.announce("train-x-2", {"a": "b"})
    (tmp_path / "embedded" / "train-x-1").touch()
    assert list(announced()) == [whole]
    assert [path.name for path in (tmp_path / "embedded").iterdir()] == ["train-x-2"]

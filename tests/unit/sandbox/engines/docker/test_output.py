"""A container's two streams become one log without splitting each other's lines."""

from __future__ import annotations

from typing import Any

import pytest

from arsandbox.sandbox.engines.docker import output


class _Watcher:
    def __init__(self) -> None:
        self.text = b""

    def output(self, chunk: bytes) -> None:
        self.text += chunk

    def tick(self, elapsed_s: float, memory_bytes: int) -> None:
        raise AssertionError("not from this thread")


def read(monkeypatch: pytest.MonkeyPatch, frames: list[tuple[int, bytes]], cap: int = 10**6) -> tuple[bytes, Any]:
    monkeypatch.setattr(output, "frames_iter", lambda connection, tty: iter(frames))
    watcher = _Watcher()
    reader = output.OutputReader(None, watcher, cap)
    reader.run()
    return watcher.text, reader


def test_a_line_of_one_stream_is_not_split_by_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [(2, b"...."), (1, b"METRIC pass_rate=1.0"), (2, b"."), (1, b"\n"), (2, b"\nOK\n")]
    assert read(monkeypatch, frames)[0] == b"METRIC pass_rate=1.0\n.....\nOK\n"


def test_what_has_no_end_of_line_comes_at_the_end_or_when_it_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    text, _ = read(monkeypatch, [(1, b"step 1\r"), (1, b"step 2"), (2, b"x" * 70_000), (2, b"y")])
    assert text == b"step 1\r" + b"x" * 70_000 + b"step 2" + b"y"


def test_the_cap_counts_what_came(monkeypatch: pytest.MonkeyPatch) -> None:
    text, reader = read(monkeypatch, [(1, b"12345678"), (1, b"9")], cap=5)
    assert text == b"12345" and reader.total == 9 and reader.over

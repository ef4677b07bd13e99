"""Output in, numbers out: dialects, hostile text, and the same answer however the stream is cut."""

from __future__ import annotations

import json
import math
import random
import time
import tracemalloc
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arsandbox.sandbox.metrics import MetricReader, Metrics, read_metrics

SUMMARY = b"step 1\n---\nval_bpb:          0.997900\ntraining_seconds: 300.1\npeak_vram_mb:     45060.2\n"


@pytest.mark.parametrize(
    ("output", "values"),
    [
        (SUMMARY, {"val_bpb": 0.9979, "training_seconds": 300.1, "peak_vram_mb": 45060.2}),
        (b"METRIC loss=0.5\n", {"loss": 0.5}),
        (b"METRIC loss = 0.5", {"loss": 0.5}),
        (b"metric loss=0.5\n", {"loss": 0.5}),
        (b"  METRIC   loss=0.5  \r\n", {"loss": 0.5}),
        (b"METRIC a/b.c-d:e=1\n", {"a/b.c-d:e": 1.0}),
        (b'{"loss": 0.5, "n": 3, "ok": true, "name": "x", "none": null}\n', {"loss": 0.5, "n": 3.0}),
        (b"METRIC a=1e-3\nMETRIC b=-2.5E+2\nMETRIC c=+.5\nMETRIC d=7.\n", {"a": 1e-3, "b": -250.0, "c": 0.5, "d": 7.0}),
        (b"METRIC loss=2\nMETRIC loss=1\n", {"loss": 1.0}),
        (b"val_bpb: 0.9\n", {}),  # not after a ---
        (b"---\nval_bpb: 0.5\n---\nval_bpb: 0.7\n", {"val_bpb": 0.7}),
        (b"---\nold: 0.5\n---\nval_bpb: 0.7\n", {"val_bpb": 0.7}),  # the last block alone
        (b"step 1\rstep 2\rMETRIC loss=0.25\rstep 3", {"loss": 0.25}),
        (b"\x1b[1m\x1b[32mMETRIC loss=0.5\x1b[0m\n", {"loss": 0.5}),
        (b"\x1b]0;title\x07METRIC loss=0.5\n", {"loss": 0.5}),
        (b"\x1b]8;;http://x\x1b\\METRIC loss=0.5\n", {"loss": 0.5}),
        (b"METRIC lo\x1b[Kss=0.5\n", {"loss": 0.5}),
        (b"\rstep 1  bpb 3.2\rstep 2  bpb 3.1---\nloss: 0.5\n", {"loss": 0.5}),  # a bar that nobody ended
        (b"\rstep 1\r\x1b[32mstep 2\x1b[0m---\r\nloss: 0.5\n", {"loss": 0.5}),
        (b"step 1\rstep 2\r---\nloss: 0.5\n", {"loss": 0.5}),
        (b"step 2---\nloss: 0.5\n", {}),  # no bar
        (b"a\r\nstep 2---\r\nloss: 0.5\n", {}),
        (b"\r[----]\rdone: ----\nloss: 0.5\n", {}),  # a bar of dashes
        (b"\rstep 1---\rloss: 0.5 of 1\n", {}),
        (b"\rscoring METRIC loss=0.5\n", {}),  # it may be a file's name
        (b"", {}),
        (b"\n\n\r\r\n", {}),
    ],
)
def test_dialects(output: bytes, values: dict[str, float]) -> None:
    found = read_metrics(output)
    assert found.values == values
    assert not found.not_finite


@pytest.mark.parametrize(
    "line",
    [
        b"METRIC loss=0,5", b"METRIC loss=1,234.5", b"METRIC loss=1.234,5", b"METRIC loss=1_000", b"METRIC loss=0x10",
        b"METRIC loss=", b"METRIC =1", b"METRIC loss 1", b"METRIC loss=1 2", b"METRIC loss=1 # best", b"XMETRIC loss=1",
        b"METRIC 9loss=1", b"METRIC lo ss=1", b"METRIC loss=1e", b"METRIC loss=--1", b"METRIC loss=1.2.3",
        b"METRIC loss=1%", b"METRIC loss=" + "\u0660".encode(), b"METRIC lo\xc3\xa9=1", b"METRIC loss=1\x00",
        b"METRIC " + b"a" * 101 + b"=1", b"METRIC loss=" + b"1" * 401, b"METRIC loss=1e123456",
        b'{"loss": "0.5"}', b'{"loss": [0.5]}', b'{"loss": {"a": 1}}', b'[{"loss": 1}]', b'{"loss": 1', b'{"loss": 1,}',
        b'{"a b": 1}', b'{"": 1}', b"{loss: 1}", b"print METRIC loss=1", b"loss=1", b"loss: 1",
    ],
)  # fmt: skip
def test_what_is_no_metric_is_none(line: bytes) -> None:
    found = read_metrics(line + b"\n")
    assert found == Metrics()


@pytest.mark.parametrize("text", ["nan", "NaN", "inf", "-inf", "+Infinity", "1e400", "-1e99999"])
def test_a_value_that_is_not_finite_is_told_and_never_a_value(text: str) -> None:
    for output in (f"METRIC loss={text}\n", f"---\nloss: {text}\n"):
        found = read_metrics(output.encode())
        assert found.values == {} and found.not_finite == {"loss"}


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e400", "1" + "0" * 400])
def test_json_that_is_not_finite_is_told_too(text: str) -> None:
    found = read_metrics(f'{{"loss": {text}, "other": 1}}\n'.encode())
    assert found.values == {"other": 1.0} and found.not_finite == {"loss"}


def test_a_later_value_that_is_not_finite_is_the_last_word() -> None:
    found = read_metrics(b"METRIC loss=0.5\nMETRIC loss=nan\n")
    assert found.values == {} and found.not_finite == {"loss"} and found.conflicting == {"loss"}


@pytest.mark.parametrize(
    ("output", "conflicting"),
    [
        (b"METRIC loss=1\nMETRIC loss=1.0\nMETRIC loss=1e0\n", False),
        (b"METRIC loss=1\nMETRIC loss=2\n", True),
        (b"METRIC loss=1\n---\nloss: 2\n", True),
        (b"METRIC loss=1\n---\nloss: 1\n", False),
        (b'{"loss": 1}\nMETRIC loss=1\n', False),
        (b'{"loss": 1}\nMETRIC loss=1.0000001\n', True),
        (b"METRIC loss=1\nMETRIC loss=2\nMETRIC loss=1\n", True),
        (b"METRIC loss=1\nMETRIC loss=2\n" + b"METRIC loss=1\n" * 10, True),
        (b"METRIC loss=1\n" * 5 + b"METRIC loss=2\n" + b"METRIC loss=1\n" * 100, True),
        (b"METRIC loss=nan\nMETRIC loss=NaN\n", False),
    ],
)
def test_two_different_values_of_one_name_are_a_conflict(output: bytes, conflicting: bool) -> None:
    assert (read_metrics(output).conflicting == {"loss"}) is conflicting


def test_a_bar_before_the_summary_hides_no_value_that_was_said() -> None:
    found = read_metrics(b"---\nloss: 0.1\n\rstep 2---\nloss: 0.5\n")
    assert found.values == {"loss": 0.5} and found.conflicting == {"loss"}
    overwritten = read_metrics(b"\rstep 2---\nloss: 0.1\rloss: 0.5\r          \n")
    assert overwritten.values == {"loss": 0.5} and overwritten.conflicting == {"loss"}


def test_the_last_value_counts_across_dialects() -> None:
    assert read_metrics(b"METRIC loss=1\n---\nloss: 2\n").values == {"loss": 2.0}
    assert read_metrics(b"---\nloss: 2\nMETRIC loss=1\n").values == {"loss": 1.0}


def test_latest_is_for_display_and_never_infinite() -> None:
    reader = MetricReader()
    assert reader.latest("loss") is None
    reader.feed(b"METRIC loss=3\nMETRIC loss=nan\nMETRIC lo")
    assert reader.latest("loss") == 3.0
    reader.feed(b"ss=2\n")
    assert reader.latest("loss") == 2.0


MIXED = (
    b"start\r\n\x1b[2Kstep 1/2\rstep 2/2\r\nMETRIC loss=0.5\n{\"acc\": 0.25}\n\x1b]0;t\x07---\r\nval: 1.5\r\n"
    b"caf\xc3\xa9 \xff\xfe\nbad: inf\nMETRIC loss=0.75\r\nstep 1\rstep 2---\nlast: 3"
)  # fmt: skip


def in_pieces(output: bytes, cuts: list[int]) -> Metrics:
    reader = MetricReader()
    start = 0
    for cut in [*sorted(cuts), len(output)]:
        reader.feed(output[start:cut])
        start = cut
    return reader.close()


def test_a_stream_cut_at_any_byte_reads_as_the_whole_does() -> None:
    whole = read_metrics(MIXED)
    assert whole.values == {"loss": 0.75, "acc": 0.25, "val": 1.5, "last": 3.0} and whole.not_finite == {"bad"}
    for cut in range(len(MIXED) + 1):
        assert in_pieces(MIXED, [cut]) == whole, cut
    assert in_pieces(MIXED, list(range(len(MIXED)))) == whole


FRAGMENTS = st.sampled_from(
    [b"METRIC a=1", b"METRIC b=2", b"METRIC a=nan", b"\n", b"\r", b"\r\n", b"---", b"bar---", b"c: 1", b"c: 2",
     b'{"a": 1}', b'{"d": 1e999}', b"\x1b[0m", b"\x1b", b"\x1b]", b"\x07", b" ", b"\xff", b"x" * 60_000, b"METRIC",
     b"{", b"}"],
)  # fmt: skip


@settings(max_examples=200)
@given(st.lists(FRAGMENTS, max_size=20).map(b"".join), st.data())
def test_any_stream_reads_the_same_in_any_pieces(output: bytes, data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(output)), max_size=6))
    assert in_pieces(output, cuts) == read_metrics(output)


@pytest.mark.parametrize("length", [99_990, 99_999, 100_000, 100_001, 200_001])
def test_lines_around_the_length_limit_read_the_same_in_any_pieces(length: int) -> None:
    output = b"METRIC a=1\n" + b"METRIC b=2".ljust(length) + b"\nMETRIC c=3\n" + b"METRIC d=4".ljust(length)
    whole = read_metrics(output)
    assert whole.values.keys() >= {"a", "c"}
    assert ("b" in whole.values) is (length <= 100_000) and ("d" in whole.values) is (length <= 100_000)
    generator = random.Random(length)
    for _ in range(20):
        assert in_pieces(output, generator.sample(range(len(output)), 3)) == whole


@settings(max_examples=300)
@given(st.binary(max_size=400))
def test_any_bytes_are_survived(output: bytes) -> None:
    found = read_metrics(output)
    assert all(math.isfinite(value) for value in found.values.values())


@settings(max_examples=200)
@given(st.recursive(st.one_of(st.floats(), st.integers(), st.booleans(), st.none(), st.text()), st.lists, max_leaves=5))
def test_any_json_is_survived(value: object) -> None:
    text = json.dumps({"m": value, "other": 1})
    found = read_metrics(text.encode())
    if isinstance(value, bool) or not isinstance(value, int | float):
        assert "m" not in found.values and "m" not in found.not_finite
    else:
        assert ("m" in found.values) != ("m" in found.not_finite)


def test_memory_stays_bounded_on_fifty_megabytes_without_a_newline() -> None:
    reader, chunk = MetricReader(), b"x" * 65_536
    tracemalloc.start()
    try:
        for _ in range(50 * 16):
            reader.feed(chunk)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * 1024**2
    reader.feed(b"\nMETRIC a=1\n")
    assert reader.close().values == {"a": 1.0}


def test_memory_stays_bounded_under_a_flood_of_names_and_values() -> None:
    reader = MetricReader()
    tracemalloc.start()
    try:
        for start in range(0, 60_000, 1000):
            reader.feed(b"".join(b"METRIC n%d=%d\nMETRIC same=%d\n" % (n, n, n) for n in range(start, start + 1000)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * 1024**2
    found = reader.close()
    assert found.values["same"] == 59_999 and len(found.values) <= 2000


@pytest.mark.parametrize(
    "line",
    [
        b"METRIC" + b" " * 99_000, b"METRIC " + b"a" * 99_000, b"a:" + b" " * 99_000 + b"x", b"\x1b[" * 49_000,
        b"\x1b]" * 49_000, b"\x1b[" + b"1;" * 49_000, b"METRIC a=" + b"1" * 99_000, b"{" * 99_000 + b"}",
        b'{"a":' * 19_000 + b"1" + b"}" * 4_000, b"[" * 99_000, b'{"a": ' + b"9" * 90_000 + b"}", b":" * 99_000,
        b"a:" * 49_000, b"METRIC a=" + b"1" * 400 + b"." + b"1" * 400 + b"x", b'{"' + b"\\" * 90_000 + b'"}',
        b"METRIC " + b"a=" * 49_000,
    ],
)  # fmt: skip
def test_no_line_takes_long(line: bytes, within: Callable[[float], AbstractContextManager[None]]) -> None:
    started = time.process_time()
    with within(20):
        read_metrics(b"---\n" + (line + b"\n") * 3)
    assert time.process_time() - started < 1.5


def test_tiny_chunks_of_a_long_line_do_not_cost_its_square(
    within: Callable[[float], AbstractContextManager[None]],
) -> None:
    reader = MetricReader()
    started = time.process_time()
    with within(30):
        for _ in range(99_000):
            reader.feed(b"x")
    assert time.process_time() - started < 8

"""Reading an upper layer is bounded, and follows nothing, whatever stands in it."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest

from arsandbox.sandbox.workspace import upper as reading
from arsandbox.sandbox.workspace.upper import Collector, remove_tree
from arsandbox_fixtures.upper_layers import make_hostile, scan
from arsandbox_fixtures.waiting import Within


def test_a_scan_opens_and_follows_nothing(upper: Path, within: Within) -> None:
    with make_hostile(upper), within(5):
        found = scan(upper)
    kinds = {row["path"]: row["kind"] for row in found["paths"]}  # type: ignore[attr-defined]
    assert kinds["fifo"] == kinds["socket"] == "other"
    assert all(kinds[name] == "symlink" for name in ("absolute", "loop", "up", "root"))
    assert "root/etc" not in kinds
    assert {line.split(":")[0] for line in found["refused"]} >= {"fifo", "socket"}  # type: ignore[attr-defined]


def test_a_fifo_in_place_of_a_lower_file_does_not_block(upper: Path, tmp_path: Path, within: Within) -> None:
    lower = tmp_path / "lower"
    lower.mkdir()
    (lower / "train.py").write_text("")
    os.mkfifo(upper / "train.py")
    with within(5):
        found = scan(upper, lower)
    assert [(r["path"], r["change"], r["kind"]) for r in found["paths"]] == [("train.py", "replaced", "other")]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "text"),
    [(b"new\nline", "new\\x0aline"), (b"\x1b[2J", "\\x1b[2J"), (b"\xff\xfe", "\\xff\\xfe"), (b"caf\xc3\xa9", "café"),
     ("\u202e".encode(), "\\x202e"), (b"\x7f", "\\x7f"), (b"\r", "\\x0d")],
)  # fmt: skip
def test_strange_names_are_shown_as_plain_text(name: bytes, text: str, upper: Path, target: Path) -> None:
    (Path(os.fsdecode(os.fsencode(upper) + b"/" + name))).write_bytes(b"x")
    (row,) = scan(upper)["paths"]  # type: ignore[misc]
    assert row["path"] == text and row["path"].isprintable()
    collector = Collector(str(upper), str(target), 100, 100)
    collector.collect(os.fsdecode(name))
    assert list(collector.files) == [text] and Path(target, os.fsdecode(name)).read_bytes() == b"x"


def test_two_different_names_are_never_shown_as_one() -> None:
    names = [b"a\nb", b"a\\x0ab", b"a\\nb", b"\xff", b"\\xff", "\u202e".encode(), b"\x202e", b"\\x202e"]
    assert len({reading.shown(name) for name in names}) == len(names)


def test_a_sparse_terabyte_is_judged_by_its_size(upper: Path, target: Path, within: Within) -> None:
    (upper / "out").mkdir()
    with open(upper / "out" / "huge", "wb") as file:
        file.truncate(2**40)
    (upper / "out" / "small").write_bytes(b"x")
    collector = Collector(str(upper), str(target), 10**6, 100)
    with within(5):
        found = scan(upper)
        collector.collect("out")
    assert found["bytes"] == 4096 or found["bytes"] < 10**6  # type: ignore[operator]
    assert list(collector.files) == ["out/small"]
    assert len(collector.refused) == 1 and collector.refused[0].startswith("out/huge: ")


def test_a_sparse_file_in_place_of_a_lower_one_is_not_read(upper: Path, tmp_path: Path, within: Within) -> None:
    lower = tmp_path / "lower"
    lower.mkdir()
    (lower / "data.bin").write_bytes(b"x")
    with open(upper / "data.bin", "wb") as file:
        file.truncate(2**40)
    with within(5):
        found = scan(upper, lower)
    assert [r["change"] for r in found["paths"]] == ["modified"]  # type: ignore[attr-defined]


def test_a_hundred_thousand_files_are_counted_up_to_a_bound(upper: Path, target: Path, within: Within) -> None:
    (upper / "out").mkdir()
    directory = os.open(upper / "out", os.O_RDONLY)
    first = upper / "first"
    first.touch()
    for number in range(100_000):
        # Hard links are as many names as files are, and faster to make.
        if number % 60_000 == 0:
            os.close(os.open(f"seed{number}", os.O_CREAT | os.O_WRONLY, dir_fd=directory))
            seed = f"seed{number}"
        os.link(seed, f"n{number}", src_dir_fd=directory, dst_dir_fd=directory)
    os.close(directory)
    collector = Collector(str(upper), str(target), 10**6, 50)
    started = time.monotonic()
    with within(30):
        found = scan(upper)
        collector.collect("out")
    assert found["truncated"] and len(found["paths"]) <= reading.MOST_LISTED  # type: ignore[arg-type]
    assert len(collector.files) == 50 and len(collector.refused) <= 101
    assert time.monotonic() - started < 20
    with within(60):
        remove_tree(str(upper))
    assert not upper.exists()


def make_deep(place: Path, depth: int, name: str = "d") -> None:
    directory = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=directory)
        inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=directory)
        os.close(directory)
        directory = inner
    os.close(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=directory))
    os.close(directory)


def test_five_thousand_levels_end_at_a_bound_and_can_be_removed(upper: Path, target: Path, within: Within) -> None:
    make_deep(upper, 5000)
    make_deep(upper, 3000, "n" * 250)
    collector = Collector(str(upper), str(target), 100, 100)
    descriptors = len(os.listdir("/proc/self/fd"))
    with within(20):
        found = scan(upper)
        collector.collect("d")
    assert any("deeper" in line for line in found["refused"])  # type: ignore[attr-defined]
    assert any("deeper" in line for line in collector.refused) and not collector.files
    assert len(os.listdir("/proc/self/fd")) == descriptors
    with within(60):
        remove_tree(str(upper))
    assert not upper.exists()


def test_modes_of_zero_do_not_stop_anything(upper: Path, target: Path) -> None:
    (upper / "out" / "in").mkdir(parents=True)
    (upper / "out" / "in" / "x").write_bytes(b"x")
    for path in (upper / "out" / "in" / "x", upper / "out" / "in", upper / "out"):
        path.chmod(0)
    if os.geteuid() == 0:
        assert len(scan(upper)["paths"]) == 3  # type: ignore[arg-type]
        collector = Collector(str(upper), str(target), 100, 100)
        collector.collect("out")
        assert list(collector.files) == ["out/in/x"] and stat.S_IMODE((target / "out/in/x").stat().st_mode) == 0o644
    remove_tree(str(upper))
    assert not upper.exists()

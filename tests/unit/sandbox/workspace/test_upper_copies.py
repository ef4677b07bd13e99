"""What is copied out of an upper layer, and how trees are removed."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from arsandbox.sandbox.workspace import upper as reading
from arsandbox.sandbox.workspace.upper import Collector, remove_tree
from arsandbox_fixtures.upper_layers import make_hostile, needs_root, scan
from arsandbox_fixtures.waiting import Within


def as_nobody(action: Callable[[], None]) -> int:
    """The exit status of `action` in a child without privilege."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            action()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@needs_root
@pytest.mark.parametrize("mode", [0o000, 0o444, 0o555, 0o300])
def test_a_tree_of_one_s_own_is_removed_without_privilege_whatever_its_modes(mode: int) -> None:
    place = Path("/var/tmp") / f"arsandbox-test-{os.getpid()}-{mode:o}"
    tree = place / "tree"

    def action() -> None:
        (tree / "d" / "e").mkdir(parents=True)
        (tree / "d" / "e" / "f").write_text("x")
        (tree / "d" / "g").write_text("x")
        (tree / "d" / "e").chmod(mode)
        (tree / "d").chmod(mode)
        remove_tree(str(tree))

    place.mkdir()
    try:
        os.chown(place, 65534, 65534)
        assert as_nobody(action) == 0
        assert not tree.exists()
    finally:
        subprocess.run(["rm", "-rf", str(place)], check=True)


def test_caps_on_bytes_and_files_hold_over_all_paths_together(upper: Path, target: Path) -> None:
    for name in ("a", "b", "c", "d"):
        (upper / name).mkdir()
        (upper / name / "f").write_bytes(b"x" * 40)
    collector = Collector(str(upper), str(target), 100, 10)
    for name in ("a", "b", "c"):
        collector.collect(name)
    assert list(collector.files) == ["a/f", "b/f"] and len(collector.refused) == 1
    assert sum(p.stat().st_size for p in target.rglob("*") if p.is_file()) == 80
    other = target.parent / "other"
    other.mkdir()
    few = Collector(str(upper), str(other), 10**6, 3)
    for name in ("a", "b", "c", "d"):
        few.collect(name)
    assert len(few.files) == 3 and "number" in few.refused[0]


def test_a_collector_copies_regular_files_alone_and_follows_nothing(
    upper: Path, target: Path, tmp_path: Path, within: Within
) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("secret")
    (upper / "out").mkdir()
    (upper / "parent").symlink_to(secret)
    (upper / "direct").symlink_to(secret / "key")
    (upper / "out" / "link").symlink_to(secret / "key")
    (upper / "out" / "dir").symlink_to(secret)
    (upper / "out" / "ok").write_text("fine")
    (upper / "out" / "setuid").write_text("s")
    (upper / "out" / "setuid").chmod(0o6777)
    with make_hostile(upper / "out"), within(5):
        collector = Collector(str(upper), str(target), 1000, 100)
        for path in (
            "out",
            "parent/key",
            "parent",
            "direct",
            "none",
            "none/deeper",
            "out/ok/below",
            "out/root/etc/passwd",
        ):
            collector.collect(path)
    assert set(collector.files) == {"out/ok", "out/setuid"}
    copied = sorted(str(p.relative_to(target)) for p in target.rglob("*") if not p.is_dir())
    assert copied == ["out/ok", "out/setuid"]
    assert stat.S_IMODE((target / "out/setuid").stat().st_mode) == 0o644
    assert {line.split(":")[0] for line in collector.refused} >= {"parent", "direct", "out/link", "out/dir", "out/fifo"}


def test_a_hard_link_is_copied_and_not_linked(upper: Path, target: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"data")
    os.link(tmp_path / "outside", upper / "x")
    collector = Collector(str(upper), str(target), 100, 100)
    collector.collect("x")
    assert (target / "x").read_bytes() == b"data" and (target / "x").stat().st_nlink == 1


def test_remove_tree_leaves_alone_what_links_point_to(upper: Path, tmp_path: Path, within: Within) -> None:
    keep = tmp_path / "keep"
    (keep / "inner").mkdir(parents=True)
    (keep / "file").write_text("x")
    (upper / "d").mkdir()
    (upper / "d" / "link").symlink_to(keep)
    (upper / "link").symlink_to(keep)
    os.link(keep / "file", upper / "d" / "hard")
    with make_hostile(upper / "d"), within(5):
        remove_tree(str(upper))
    assert not upper.exists() and (keep / "file").read_text() == "x" and (keep / "inner").is_dir()
    (tmp_path / "alias").symlink_to(keep)
    remove_tree(str(tmp_path / "alias"))
    assert (keep / "file").exists() and not (tmp_path / "alias").is_symlink()
    remove_tree(str(tmp_path / "never-there"))


def test_remove_tree_copes_with_names_like_its_own_scratch_names(upper: Path) -> None:
    for number in range(1, 20):
        (upper / f".removing-{number}" / "full").mkdir(parents=True)
        (upper / f"x{number}" / "sub" / "sub").mkdir(parents=True)
    remove_tree(str(upper))
    assert not upper.exists()


def test_the_file_runs_alone_in_a_helper_container(upper: Path, target: Path) -> None:
    """`python3 -I -c SOURCE REQUEST`: nothing of ours can be imported there."""
    source = Path(reading.__file__).read_text()
    (upper / "out").mkdir()
    (upper / "out" / "f").write_bytes(b"x")
    (upper.parent / "empty").mkdir()

    def ask(**request: object) -> dict[str, object]:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", source, json.dumps(request)], capture_output=True, check=True
        )
        return json.loads(done.stdout)

    assert ask(do="scan", upper=str(upper), lowers=[str(upper.parent / "empty")]) == scan(upper)
    found = ask(do="collect", upper=str(upper), target=str(target), bytes=10, files=10, paths=["out"])
    assert found == {
        "files": {"out/f": "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"}, "refused": [],
    }  # fmt: skip

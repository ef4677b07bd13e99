"""Reading an overlay's upper layer is right against the kernel's own view."""

from __future__ import annotations

import os
import random
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from arsandbox.sandbox.models import ChangeSet
from arsandbox.sandbox.workspace import upper as reading
from arsandbox.sandbox.workspace.overlay import overlay_options, unmount_below
from arsandbox.sandbox.workspace.upper import Scan
from arsandbox_fixtures.upper_layers import needs_root

Entry = tuple[str, bytes]  # kind (file, exec, symlink, directory), content or target


def walk(root: Path) -> dict[str, Entry]:
    """What stands below `root`, by the standard library alone."""
    found: dict[str, Entry] = {}
    for directory, below, names in os.walk(root):
        for name in [*below, *names]:
            path = Path(directory, name)
            key = str(path.relative_to(root))
            try:
                mode = path.lstat().st_mode
            except FileNotFoundError:  # the kernel lists a whiteout that hides nothing, and then shows none
                continue
            if stat.S_ISLNK(mode):
                found[key] = ("symlink", os.fsencode(os.readlink(path)))
            elif stat.S_ISDIR(mode):
                found[key] = ("directory", b"")
            else:
                found[key] = ("exec" if mode & 0o100 else "file", path.read_bytes())
    return found


@contextmanager
def overlay(place: Path, lowers: list[Path]) -> Iterator[tuple[Path, Path]]:
    """(merged view, upper layer) of a kernel overlay over `lowers`, mounted as the product mounts it."""
    merged, upper, work = place / "merged", place / "upper", place / "work"
    for directory in (merged, upper, work):
        directory.mkdir(parents=True)
    options = overlay_options(lowers, upper, work)
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(merged)], check=True, capture_output=True)
    try:
        yield merged, upper
    finally:
        unmount_below(place)


@contextmanager
def read_only(place: Path, lowers: list[Path]) -> Iterator[Path]:
    """The merged view of the lowers alone."""
    if len(lowers) == 1:
        yield lowers[0]
        return
    place.mkdir()
    joined = ":".join(map(str, lowers))
    subprocess.run(
        ["mount", "-t", "overlay", "overlay", "-o", f"ro,userxattr,lowerdir={joined}", str(place)], check=True
    )
    try:
        yield place
    finally:
        unmount_below(place)


NAMES = ["a", "b", "c", "d.py", "é", "n\nl", " x"]


def somewhere(generator: random.Random, depth: int = 3) -> str:
    return "/".join(generator.choice(NAMES) for _ in range(generator.randint(1, depth)))


def content(generator: random.Random) -> bytes:
    return generator.choice([b"", b"one", b"two", b"three", b"x" * 5000])


def build_lower(root: Path, generator: random.Random, *, whiteouts: bool) -> None:
    root.mkdir()
    for _ in range(generator.randint(3, 14)):
        path = root / somewhere(generator)
        kind, data, mode = generator.random(), content(generator), generator.choice([0o644, 0o755])
        if any(parent.is_symlink() for parent in path.parents if parent != root) or os.path.lexists(path):
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind < 0.65:
                path.write_bytes(data)
                path.chmod(mode)
            elif kind < 0.75:
                path.symlink_to(generator.choice(["a", "/etc/passwd", "../b", "c"]))
            elif kind < 0.9 or not whiteouts:
                path.mkdir()
            else:
                os.mknod(path, 0o020000, os.makedev(0, 0))
        except OSError:  # a file or whiteout is in the way
            continue


def operate(root: Path, generator: random.Random) -> None:
    """One random operation on the merged view; those that cannot be done are none."""
    existing = [root / key for key in sorted(walk(root))]
    path = generator.choice(existing) if existing and generator.random() < 0.7 else root / somewhere(generator)
    files = path.is_file() and not path.is_symlink()
    directory = path.is_dir() and not path.is_symlink()
    action = generator.choice(
        [
            "write",
            "write",
            "touch",
            "chmod",
            "delete",
            "delete",
            "mkdir",
            "symlink",
            "rename",
            "recreate",
            "swap",
            "same",
        ]
    )
    if any(parent.is_symlink() for parent in path.parents if parent != root and root in parent.parents):
        return  # never through a symlink: it may lead out of the tree
    try:
        if action == "write" and not directory and not path.is_symlink():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content(generator))
        elif action == "touch" and (files or directory):
            os.utime(path)  # copied up, unchanged
        elif action == "chmod" and files:
            path.chmod(generator.choice([0o644, 0o600, 0o755, 0o700]))
        elif action == "chmod" and directory:
            path.chmod(generator.choice([0o700, 0o777]))
        elif action == "delete" and directory:
            shutil.rmtree(path)
        elif action == "delete":
            path.unlink()
        elif action == "mkdir":
            path.mkdir(parents=True)
        elif action == "symlink":
            path.symlink_to(generator.choice(["a", "/etc/passwd", ".", "c"]))
        elif action == "rename":
            target = root / somewhere(generator)
            if not target.is_symlink() and path not in target.parents and target.parent.resolve() == target.parent:
                shutil.move(path, target)
        elif action == "recreate" and directory:  # deleted and made again: opaque
            names = sorted(entry.name for entry in path.iterdir())
            shutil.rmtree(path)
            path.mkdir()
            for name in names:
                if generator.random() < 0.5:
                    kind = generator.random()
                    if kind < 0.4:
                        (path / name).write_bytes(content(generator))
                    elif kind < 0.8:
                        (path / name).mkdir()
        elif action == "swap" and files:
            path.unlink()
            path.mkdir()
            (path / generator.choice(NAMES)).write_bytes(content(generator))
        elif action == "swap" and directory:
            shutil.rmtree(path)
            path.write_bytes(content(generator))
    except (OSError, RuntimeError):
        return


def family(entry: Entry) -> str:
    return "file" if entry[0] == "exec" else entry[0]


def expected(before: dict[str, Entry], after: dict[str, Entry]) -> dict[str, tuple[str, str]]:
    """path -> (change, kind); below a deleted or replaced path nothing more is listed as deleted."""
    found: dict[str, tuple[str, str]] = {}
    for path in sorted(before.keys() | after.keys()):
        old, new = before.get(path), after.get(path)
        if new is None:
            parents = ["/".join(path.split("/")[:n]) for n in range(1, path.count("/") + 1)]
            gone = any(p not in after or family(after[p]) != "directory" for p in parents)
            if not gone:
                found[path] = ("deleted", "nothing")
        elif old is None:
            found[path] = ("added", family(new))
        elif family(old) != family(new):
            found[path] = ("replaced", family(new))
        elif old != new:
            found[path] = ("modified", family(new))
    return found


@needs_root
@pytest.mark.parametrize("seed", range(60))
def test_a_scan_agrees_with_the_kernel_s_merged_view(seed: int, tmp_path: Path) -> None:
    generator = random.Random(seed)
    lowers = [tmp_path / f"lower{n}" for n in range(generator.choice([1, 2, 2, 3]))]
    for number, lower in enumerate(lowers):
        build_lower(lower, generator, whiteouts=number < len(lowers) - 1)
    with read_only(tmp_path / "before", lowers) as view:
        before = walk(view)
    with overlay(tmp_path / "mount", lowers) as (merged, upper):
        for _ in range(generator.randint(0, 25)):
            operate(merged, generator)
        after = walk(merged)
        result = Scan(str(upper), [str(lower) for lower in lowers]).result()
    found = {row["path"]: (row["change"], row["kind"]) for row in result["paths"]}
    wanted = {reading.shown(os.fsencode(path)): row for path, row in expected(before, after).items()}
    assert found == wanted
    assert len(result["paths"]) == len(found) and not result["truncated"] and not result["refused"]
    sizes = {row["path"]: row["size"] for row in result["paths"] if row["kind"] == "file"}
    assert sizes == {reading.shown(os.fsencode(p)): len(e[1]) for p, e in after.items()
                     if reading.shown(os.fsencode(p)) in sizes}  # fmt: skip
    ChangeSet.model_validate(result)


@needs_root
def test_a_directory_made_anew_hides_what_was_below_its_old_subdirectories(tmp_path: Path) -> None:
    """Inside an opaque directory the kernel marks no further directory as opaque."""
    lower = tmp_path / "lower"
    (lower / "a" / "sub").mkdir(parents=True)
    (lower / "a" / "sub" / "kept-before").write_text("x")
    with overlay(tmp_path / "mount", [lower]) as (merged, upper):
        shutil.rmtree(merged / "a")
        (merged / "a" / "sub").mkdir(parents=True)
        assert list((merged / "a" / "sub").iterdir()) == []
        rows = Scan(str(upper), [str(lower)]).changes
    assert [(row["path"], row["change"]) for row in rows] == [("a/sub/kept-before", "deleted")]


@needs_root
def test_touching_and_rewriting_the_same_content_is_no_change(tmp_path: Path) -> None:
    lower = tmp_path / "lower"
    build_lower(lower, random.Random(5), whiteouts=False)
    with overlay(tmp_path / "mount", [lower]) as (merged, upper):
        for key, (kind, data) in walk(merged).items():
            if kind in ("file", "exec"):
                (merged / key).write_bytes(data)
                os.utime(merged / key, (1, 1))
            elif kind == "directory":
                os.utime(merged / key, (1, 1))
        assert any(upper.rglob("*"))
        assert Scan(str(upper), [str(lower)]).changes == []


@needs_root
@pytest.mark.parametrize("kind", ["whiteout", "opaque"])
def test_a_run_cannot_forge_the_marks_of_the_overlay(kind: str, tmp_path: Path) -> None:
    lower = tmp_path / "lower"
    (lower / "d").mkdir(parents=True)
    (lower / "d" / "train.py").write_text("x")
    with overlay(tmp_path / "mount", [lower]) as (merged, upper):
        try:
            if kind == "whiteout":
                os.mknod(merged / "fake", 0o020000, os.makedev(0, 0))
            else:
                os.setxattr(merged / "d", "user.overlay.opaque", b"y")
        except OSError:
            pass
        after = walk(merged)
        rows = {row["path"]: row["change"] for row in Scan(str(upper), [str(lower)]).changes}
    assert "d/train.py" in after and "d/train.py" not in rows

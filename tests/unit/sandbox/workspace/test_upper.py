"""Reading an overlay's upper layer: right against the kernel's own view, and bounded against hostile content."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from arsandbox.sandbox.models import ChangeSet
from arsandbox.sandbox.workspace import upper as reading
from arsandbox.sandbox.workspace.overlay import overlay_options, unmount_below
from arsandbox.sandbox.workspace.upper import Collector, Scan, remove_tree

Within = Callable[[float], AbstractContextManager[None]]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting an overlay needs root")

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


@pytest.fixture
def upper(tmp_path: Path) -> Path:
    place = tmp_path / "upper"
    place.mkdir()
    return place


@pytest.fixture
def target(tmp_path: Path) -> Path:
    place = tmp_path / "target"
    place.mkdir()
    return place


def scan(upper: Path, lower: Path | None = None) -> dict[str, object]:
    empty = lower or upper.parent / "empty-lower"
    empty.mkdir(exist_ok=True)
    found = Scan(str(upper), [str(empty)]).result()
    json.dumps(found)
    ChangeSet.model_validate(found)
    return found


def make_hostile(place: Path) -> socket.socket:
    """One of everything that must neither be followed nor opened."""
    os.mkfifo(place / "fifo")
    listener = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(place)
    try:
        listener.bind("socket")
    finally:
        os.chdir(here)
    (place / "absolute").symlink_to("/etc/passwd")
    (place / "loop").symlink_to("loop")
    (place / "up").symlink_to("../../../../../etc")
    (place / "root").symlink_to("/")
    if os.geteuid() == 0:
        os.mknod(place / "device", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    return listener


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

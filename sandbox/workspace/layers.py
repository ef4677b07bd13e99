"""Content-addressed, read-only layers of a workspace: a full snapshot, and deltas over it.

A tree is mounted as at most two lower layers: `full(A)`, the files of some earlier tree, and
`delta(A -> B)`, what differs. A candidate is a delta over its base; a promoted base that differs
from a cached one by a few files costs a few files. Blobs are written byte for byte: no filter,
no end-of-line conversion, no attribute of the repository is applied.

Files are 0666 or 0777 and directories 0777 inside a parent that only the controller may enter: the
sandbox's user, whoever that is, sees them through the overlay alone and may replace all of them.

A tree is only an object that someone wrote: layers are written through directory descriptors, which
follow nothing, so that no tree reaches what is outside its layer.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from arsandbox.sandbox import state
from arsandbox.sandbox.errors import RepositoryError, StateError
from arsandbox.sandbox.objects import Change, ObjectStore, TreeEntry

FILE_MODE, EXECUTABLE_MODE, SYMLINK_MODE, SUBMODULE_MODE = "100644", "100755", "120000", "160000"
_DELTA_MOST = 2_000
_NEAR_MOST = 4
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# What a tree gets that no directory can hold: a name twice or too long, a file where a directory must be.
_NOT_A_TREE = (errno.EEXIST, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT, errno.EINVAL)


@dataclass(frozen=True)
class Layers:
    """The read-only lower layers of one tree, topmost first."""

    paths: tuple[Path, ...]


class LayerStore:
    """The cached layers of one repository, below `directory`."""

    def __init__(self, directory: Path, objects: ObjectStore) -> None:
        self._directory = state.make_private(directory)
        self._objects = objects

    def layers(self, commit: str, *, without: Sequence[str] = ()) -> Layers:
        """Lower layers that show the tree of `commit` but for the paths in `without`.

        The first tree of a repository is written in full; later ones as a delta over a full one while
        they are near to it. Blocks while another controller builds. Raises RepositoryError, StateError.
        """
        tree = self._objects.tree_of(commit)
        with state.exclusive(self._directory / "lock"):
            full = self._directory / _key("full", tree, tuple(without))
            if full.is_dir():
                return Layers((full,))
            for origin in self._full_trees(without):
                changes = [c for c in self._objects.changes(origin, tree) if not is_below(c.path, without)]
                if len(changes) <= _DELTA_MOST:
                    base = self._directory / _key("full", origin, tuple(without))
                    if not changes:
                        return Layers((base,))
                    delta = self._directory / _key("delta", origin, tree, tuple(without))
                    if not delta.is_dir():
                        self._build(delta, partial(self._write_delta, changes, tree, without))
                    return Layers((delta, base))
            entries = (e for e in self._objects.entries(tree) if not is_below(e.path, without))
            self._build(full, partial(self._write_entries, entries))
            self._remember(tree, without)
            return Layers((full,))

    def only(self, commit: str, paths: Sequence[str]) -> Layers:
        """A layer of nothing but the files of `commit` at or below `paths`; no layer where there are none."""
        entries = [e for e in self._objects.entries(self._objects.tree_of(commit)) if is_below(e.path, paths)]
        return self._made(_key("only", entries), partial(self._write_entries, entries)) if entries else Layers(())

    def hiding(self, paths: Sequence[str]) -> Layers:
        """A layer that hides `paths` of the layers below it."""
        chosen = set(paths)
        tops = sorted(path for path in chosen if chosen.isdisjoint(_parents(path)))
        return self._made(_key("hiding", tuple(tops)), partial(_write_whiteouts, tops)) if tops else Layers(())

    def write_copy(self, commit: str, target: Path, *, without: Sequence[str] = ()) -> None:
        """Write the files of `commit` but for `without` into the empty directory `target`. Raises RepositoryError."""
        entries = self._objects.entries(self._objects.tree_of(commit))
        self._write_entries((entry for entry in entries if not is_below(entry.path, without)), target)

    def _made(self, key: str, write: Callable[[Path], None]) -> Layers:
        with state.exclusive(self._directory / "lock"):
            if not (self._directory / key).is_dir():
                self._build(self._directory / key, write)
        return Layers((self._directory / key,))

    def _full_trees(self, without: Sequence[str]) -> list[str]:
        """The trees whose full snapshot with the same paths left out is there, latest first."""
        known = [tree for tree, hidden in self._index() if hidden == list(without)]
        return [tree for tree in known if (self._directory / _key("full", tree, tuple(without))).is_dir()][:_NEAR_MOST]

    def _index(self) -> list[tuple[str, list[str]]]:
        try:
            rows = json.loads((self._directory / "full.json").read_text())
        except (OSError, ValueError, RecursionError):
            rows = None
        found: list[tuple[str, list[str]]] = []  # a lost index costs a rebuild, nothing else
        for row in rows if isinstance(rows, list) else ():
            match row:
                case [str(tree), list(hidden)]:
                    found.append((tree, hidden))
        return found

    def _remember(self, tree: str, without: Sequence[str]) -> None:
        rows = [
            (tree, list(without)),
            *[row for row in self._index() if row[0] != tree or row[1] != list(without)],
        ]
        fresh = self._directory / "full.json.new"
        fresh.write_text(json.dumps(rows[:50]))
        fresh.rename(self._directory / "full.json")

    def _build(self, target: Path, write: Callable[[Path], None]) -> None:
        for left in self._directory.glob("building-*"):  # we hold the lock: whoever made it is dead
            shutil.rmtree(left, ignore_errors=True)
        scratch = Path(tempfile.mkdtemp(prefix="building-", dir=self._directory))
        try:
            root = scratch / "root"
            root.mkdir()
            root.chmod(0o777)
            write(root)
            root.rename(target)
        except OSError as error:
            raise StateError(
                f"cannot write the snapshot {target.name[:20]}: {error.strerror}",
                hint=f"free some space below {self._directory}",
            ) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _write_entries(self, entries: Iterable[TreeEntry], root: Path) -> None:
        with self._objects.blobs() as blobs, _writer(root) as layer:
            for entry in entries:
                if entry.mode == SUBMODULE_MODE:
                    raise RepositoryError(
                        f"{entry.path} is a submodule: its content is not part of this repository's commits",
                        hint="vendor it, or run in a repository without submodules",
                    )
                content = blobs.read(entry.blob)
                if entry.mode == SYMLINK_MODE:
                    layer.symlink(entry.path, content)
                else:
                    layer.file(entry.path, content, 0o777 if entry.mode == EXECUTABLE_MODE else 0o666)

    def _write_delta(self, changes: Sequence[Change], tree: str, without: Sequence[str], root: Path) -> None:
        written = [change.new for change in changes if change.new is not None]
        self._write_entries(written, root)
        gone = [change.path for change in changes if change.new is None]
        # The directories with a file in the new tree, as far as the changes concern them.
        alive = {parent for entry in written for parent in _parents(entry.path)}
        for top in sorted({path.split("/", 1)[0] for path in gone if "/" in path}):
            for path in self._objects.files_below(tree, top):
                if not is_below(path, without):
                    alive.update(_parents(path))
        _write_whiteouts(_hidden(gone, {entry.path for entry in written}, alive), root)


def is_below(path: str, roots: Iterable[str]) -> bool:
    """Whether `path` is one of `roots` or below one of them."""
    return any(path == root or path.startswith(root + "/") for root in roots)


def _parents(path: str) -> list[str]:
    """The directories above `path`, topmost first."""
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def _hidden(gone: Iterable[str], written: set[str], alive: set[str]) -> list[str]:
    """What a delta must hide so that the files `gone` leave no empty directory.

    `written` are the files of the delta, `alive` the directories that have a file in the new tree.
    """
    found: dict[str, None] = {}
    for path in gone:
        first = next((place for place in (*_parents(path), path) if place not in alive), None)
        if first is not None and first not in written:  # a file in a directory's place hides all below it
            found[first] = None
    return list(found)


def _write_whiteouts(paths: Iterable[str], root: Path) -> None:
    with _writer(root) as layer:
        for path in paths:
            layer.whiteout(path)


class _Writer:
    """Writes new entries below the directory `root` (a descriptor), parents included; overwrites nothing.

    Raises RepositoryError for what no work tree can hold, OSError when there is no room.
    """

    def __init__(self, root: int) -> None:
        self._open = [("", root)]  # the directory of the latest entry, and those above it

    def file(self, path: str, content: bytes, mode: int) -> None:
        with self._place(path) as (directory, name):
            descriptor = os.open(name, _NEW_FILE, 0o600, dir_fd=directory)
            try:
                Path(f"/proc/self/fd/{descriptor}").write_bytes(content)
                os.fchmod(descriptor, mode)
            finally:
                os.close(descriptor)

    def symlink(self, path: str, target: bytes) -> None:
        with self._place(path) as (directory, name):
            os.symlink(target, name, dir_fd=directory)

    def whiteout(self, path: str) -> None:
        # Documentation/filesystems/overlayfs.rst: a whiteout is a character device with number 0/0.
        # Anyone may make one since Linux 5.8.
        with self._place(path) as (directory, name):
            os.mknod(name, 0o020000, os.makedev(0, 0), dir_fd=directory)

    def close(self, keep: int = 0) -> None:
        """Close all but the topmost `keep` directories."""
        while len(self._open) > keep:
            os.close(self._open.pop()[1])

    @contextmanager
    def _place(self, path: str) -> Iterator[tuple[int, str]]:
        *parents, name = path.split("/")
        try:
            if any(part in ("", ".", "..") or part.lower() == ".git" for part in (*parents, name)):
                raise ValueError(path)
            same = 1
            while same < len(self._open) and same <= len(parents) and self._open[same][0] == parents[same - 1]:
                same += 1
            self.close(keep=same)
            for part in parents[same - 1 :]:
                self._open.append((part, _made_directory(part, self._open[-1][1])))
            yield self._open[-1][1], name
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno not in _NOT_A_TREE:
                raise
            raise RepositoryError(f"the tree holds {path!r}, which cannot be in a directory of files") from error


@contextmanager
def _writer(root: Path) -> Iterator[_Writer]:
    writer = _Writer(os.open(root, _DIRECTORY))
    try:
        yield writer
    finally:
        writer.close()


def _made_directory(name: str, parent: int) -> int:
    """The directory `name` of `parent`, open; made where it is not there."""
    try:
        os.mkdir(name, 0o700, dir_fd=parent)
    except FileExistsError:
        return os.open(name, _DIRECTORY, dir_fd=parent)
    descriptor = os.open(name, _DIRECTORY, dir_fd=parent)
    os.fchmod(descriptor, 0o777)
    return descriptor


def _key(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogateescape")).hexdigest()[:40]

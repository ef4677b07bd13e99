"""Content-addressed, read-only layers of a workspace: a full snapshot, and deltas over it.

A tree is mounted as at most two lower layers: `full(A)`, the files of some earlier tree, and
`delta(A -> B)`, what differs. A candidate is a delta over its base; a promoted base that differs
from a cached one by a few files costs a few files. Blobs are written byte for byte: no filter,
no end-of-line conversion, no attribute of the repository is applied.

Files are 0666 or 0777 and directories 0777 inside a parent that only the controller may enter: the
sandbox's user, whoever that is, sees them through the overlay alone and may replace all of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from arsandbox.sandbox import state
from arsandbox.sandbox.errors import RepositoryError, StateError
from arsandbox.sandbox.objects import Change, ObjectStore, TreeEntry

FILE_MODE, EXECUTABLE_MODE, SYMLINK_MODE, SUBMODULE_MODE = "100644", "100755", "120000", "160000"
_DELTA_MOST = 2_000
_NEAR_MOST = 4


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
                        self._build(delta, partial(self._write_delta, changes))
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
        return self._made(_key("hiding", tuple(paths)), partial(_write_whiteouts, paths)) if paths else Layers(())

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
        except (FileNotFoundError, ValueError):
            return []  # a lost index costs a rebuild, nothing else
        return [(str(tree), list(hidden)) for tree, hidden in rows]

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
        made: set[PurePosixPath] = set()
        with self._objects.blobs() as blobs:
            for entry in entries:
                _make_parents(root, PurePosixPath(entry.path), made)
                if entry.mode == SUBMODULE_MODE:
                    raise RepositoryError(
                        f"{entry.path} is a submodule: its content is not part of this repository's commits",
                        hint="vendor it, or run in a repository without submodules",
                    )
                content = blobs.read(entry.blob)
                target = root / entry.path
                if entry.mode == SYMLINK_MODE:
                    os.symlink(content, target)
                    continue
                target.write_bytes(content)
                target.chmod(0o777 if entry.mode == EXECUTABLE_MODE else 0o666)

    def _write_delta(self, changes: Sequence[Change], root: Path) -> None:
        self._write_entries((change.new for change in changes if change.new is not None), root)
        made: set[PurePosixPath] = set()
        for change in changes:
            path, target = PurePosixPath(change.path), root / change.path
            if change.new is None and not target.is_dir() and not _replaced(root, path):
                _make_parents(root, path, made)
                _whiteout(target)


def is_below(path: str, roots: Iterable[str]) -> bool:
    """Whether `path` is one of `roots` or below one of them."""
    return any(path == root or path.startswith(root + "/") for root in roots)


def _replaced(root: Path, path: PurePosixPath) -> bool:
    """Whether the delta puts a file or symlink where one of `path`'s directories was: it hides all below."""
    return any((root / parent).is_symlink() or (root / parent).is_file() for parent in path.parents)


def _write_whiteouts(paths: Sequence[str], root: Path) -> None:
    made: set[PurePosixPath] = set()
    for path in paths:
        _make_parents(root, PurePosixPath(path), made)
        _whiteout(root / path)


def _whiteout(target: Path) -> None:
    # Documentation/filesystems/overlayfs.rst: a whiteout is a character device with number 0/0.
    # Anyone may make one since Linux 5.8.
    os.mknod(target, 0o020000, os.makedev(0, 0))


def _make_parents(root: Path, path: PurePosixPath, made: set[PurePosixPath]) -> None:
    for parent in reversed(path.parents):
        if parent in made or parent == PurePosixPath("."):
            continue
        directory = root / parent
        directory.mkdir(exist_ok=True)
        directory.chmod(0o777)
        made.add(parent)


def _key(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogateescape")).hexdigest()[:40]

"""Caches by name: copied in once, named by the digest of their contents, and compared before every use.

A version never changes; a name stands for its newest one. Nothing but the commands of `arsandbox cache` writes here.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from arsandbox.sandbox import state
from arsandbox.sandbox.caches.kinds import COMPILED, WORKSPACE_FOLDER, Kind
from arsandbox.sandbox.canonical import digest
from arsandbox.sandbox.errors import MachineError, RefusedError, StateError, UsageError
from arsandbox.sandbox.models import Model
from arsandbox.sandbox.stat_cache import StatCache
from arsandbox.sandbox.workspace.frozen import require_equal
from arsandbox.sandbox.workspace.upper import remove_tree, sha256_of

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


class Manifest(Model):
    """What a version holds: path to SHA-256, the bytes of all files, and where it came from."""

    kind: Kind
    files: dict[str, str]
    size_bytes: int
    origin: str

    @property
    def sha256(self) -> str:
        """The version's digest: kind, paths and contents."""
        return digest({"kind": self.kind, "files": [list(row) for row in sorted(self.files.items())]})


class CacheVersion(Model):
    """One version on disk. `tree` holds its files; `layer`, for compiled kinds, is the workspace's lower layer."""

    name: str
    sha256: str
    manifest: Manifest
    tree: Path
    layer: Path | None


class CacheStore:
    """All caches below `root`; by default those of this machine's state directory."""

    def __init__(self, root: Path | None = None) -> None:
        self._root = root or state.home() / "caches"

    def names(self) -> list[str]:
        """The names of all caches, sorted."""
        return sorted(path.parent.name for path in self._root.glob("*/current.json"))

    def add(self, name: str, kind: Kind, source: Path, *, origin: str = "") -> CacheVersion:
        """Copy the directory `source` and let `name` stand for that version from now on.

        Links to files below `source` become copies. Raises UsageError for a bad name, another kind than before, or a
        source that holds something else than files; StateError when it cannot be kept.
        """
        if not _NAME.fullmatch(name):
            raise UsageError(f"cache name {name!r}: not usable", hint="small letters, digits, - and _, like tokens")
        if not source.is_dir():
            raise UsageError(f"{source} is not a directory")
        with self._writing(name) as home:
            known = self._current(name)
            if known is not None and known[1] != kind:
                raise UsageError(f"cache {name} is of kind {known[1]}, not {kind}", hint="choose another name")
            self._keep(home, kind, [source], origin or str(source.absolute()))
        return self.open(name)

    def _keep(self, home: Path, kind: Kind, sources: Sequence[Path], origin: str) -> Manifest:
        """Let the cache in `home`, whose lock is held, stand for the files of `sources`, earlier ones first."""
        for left in home.glob("adding-*"):  # we hold the lock: whoever made it is dead
            remove_tree(str(left))
        fresh = Path(tempfile.mkdtemp(prefix="adding-", dir=home))
        try:
            tree = _tree(fresh, home.name, kind)
            files: dict[str, str] = {}
            size = 0
            for source in sources:
                size += _copy(source, tree, files)
            if kind in COMPILED:  # a folder of the workspace, too
                tree.parent.chmod(0o777)
            manifest = Manifest(kind=kind, files=files, size_bytes=size, origin=origin)
            (fresh / "manifest.json").write_text(manifest.model_dump_json(), encoding="utf-8")
            target = home / manifest.sha256
            if target.exists() and _damaged(target, home.name, manifest):
                remove_tree(str(target))
            if not target.exists():
                fresh.rename(target)
        finally:
            remove_tree(str(fresh))
        partial = home / "current.json.new"
        partial.write_text(json.dumps({"sha256": manifest.sha256, "kind": kind}), encoding="utf-8")
        partial.replace(home / "current.json")
        return manifest

    def open(self, name: str, *, kind: str = "", sha256: str = "", every_byte: bool = False) -> CacheVersion:
        """The version `sha256` of `name` (empty: the newest), after comparing every file with what was written down.

        A file whose times, size and inode are those of the last reading is not read again unless `every_byte`.
        Raises MachineError when it is not here, UsageError when it is of another kind, RefusedError when a file was
        changed, added or removed.
        """
        current = self._current(name)
        if current is None:
            raise MachineError(f"cache {name!r} is not here", hint=f"arsandbox cache add {name} PATH --kind KIND")
        wanted = sha256 or current[0]
        place = self._root / name / wanted
        try:
            manifest = Manifest.model_validate_json((place / "manifest.json").read_bytes())
        except FileNotFoundError:
            raise MachineError(
                f"version {wanted[:12]} of cache {name} is not here, only {current[0][:12]}",
                hint=f"add that one: arsandbox cache add {name} PATH --kind {current[1]}",
            ) from None
        except (OSError, ValidationError) as error:
            raise RefusedError(f"cache {name} was changed: its manifest", hint=_again(name, current[1])) from error
        if kind and manifest.kind != kind:
            raise UsageError(f"cache {name} is of kind {manifest.kind}, not {kind}")
        tree = _tree(place, name, manifest.kind)
        if manifest.sha256 != wanted:
            raise RefusedError(f"cache {name} was changed: its manifest", hint=_again(name, current[1]))
        try:
            seen = StatCache(place / "seen.json", tree)
            require_equal(_contents(tree, manifest, seen, every_byte), manifest.files, f"cache {name}")
            seen.save()
        except RefusedError as error:
            raise RefusedError(error.message, hint=_again(name, current[1])) from error
        layer = place / "layer" if manifest.kind in COMPILED else None
        return CacheVersion(name=name, sha256=wanted, manifest=manifest, tree=tree, layer=layer)

    def adopt(self, name: str, compiled: Path, *, origin: str) -> tuple[CacheVersion, int]:
        """A new version of `name`: the newest one and what `compiled` holds besides; also says how many files came.

        A path that the cache has already, as a file or as a folder, stays what it is, whatever `compiled` says of it.
        Raises as `open` and `add` do, and UsageError for a kind that no run compiles.
        """
        self.open(name)  # before a folder is made for a name that there is not
        with self._writing(name) as home:  # of two adoptions at once, the later one builds on the earlier
            before = self.open(name, every_byte=True)
            if before.manifest.kind not in COMPILED:
                raise UsageError(f"cache {name} is of kind {before.manifest.kind}: no run compiles it")
            after = self._keep(home, before.manifest.kind, [before.tree, compiled], origin)
        return self.open(name, sha256=after.sha256), len(after.files) - len(before.manifest.files)

    def _current(self, name: str) -> tuple[str, Kind] | None:
        if not _NAME.fullmatch(name):
            return None
        try:
            said = json.loads((self._root / name / "current.json").read_bytes())
            return str(said["sha256"]), said["kind"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StateError(f"cache {name} is damaged: current.json", hint=f"rm -r {self._root / name}") from error

    @contextmanager
    def _writing(self, name: str) -> Iterator[Path]:
        home = state.make_private(self._root / name)
        with state.exclusive(home / "lock", seconds=3600):
            try:
                yield home
            except PermissionError as error:
                raise StateError(f"cannot keep cache {name}: {error}", hint="let yourself read it first") from error
            except OSError as error:
                raise StateError(f"cannot keep cache {name}: {error}", hint="free some space there") from error


def _again(name: str, kind: str) -> str:
    return f"find out who changed it, then: arsandbox cache add {name} PATH --kind {kind}"


def _tree(place: Path, name: str, kind: str) -> Path:
    return place / "layer" / WORKSPACE_FOLDER / name if kind in COMPILED else place / "tree"


def _damaged(place: Path, name: str, manifest: Manifest) -> bool:
    tree = _tree(place, name, manifest.kind)
    try:
        return _contents(tree, manifest, StatCache(place / "seen.json", tree), True) != manifest.files
    except RefusedError:
        return True


def _contents(tree: Path, manifest: Manifest, seen: StatCache, every_byte: bool) -> dict[str, str]:
    """Path to SHA-256 of every file in `tree`. Raises RefusedError for anything that is neither file nor directory."""
    found = {}
    for path, entry in _walk(tree):
        if not entry.is_file(follow_symlinks=False):
            raise RefusedError(f"{state.printable(path)} has no place in a cache: only files and directories have")
        expected = manifest.files.get(path, "")
        if not every_byte and expected and seen.holds(path, "", expected):
            found[path] = expected
            continue
        found[path] = sha256_of(entry.path)
        seen.remember(path, "", found[path])
    return found


def _walk(tree: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Everything below `tree` but directories, as (path relative to it, entry); without recursion, nothing followed."""
    waiting = [""]
    while waiting:
        below = waiting.pop()
        with os.scandir(tree / below) as entries:
            for entry in sorted(entries, key=lambda one: one.name):
                path = f"{below}{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(f"{path}/")
                else:
                    yield path, entry


def _copy(source: Path, target: Path, files: dict[str, str]) -> int:
    """Copy every file of `source` for whose path there is room, noting path to SHA-256 in `files`; returns their bytes.

    There is none where `target` has that path, or a file in place of one of its folders.
    """
    root, size = source.resolve(), 0
    target.mkdir(parents=True, exist_ok=True)
    for path, entry in _walk(source):
        if not _is_text(path):
            raise UsageError(f"{state.printable(path)} in {source}: a name that is not UTF-8 cannot be cached")
        real = _resolved(entry)
        if real is None or not real.is_relative_to(root):
            raise UsageError(f"{state.printable(path)} in {source} is no file of that directory: it cannot be cached")
        place = target / path
        if place.exists() or any(str(above) in files for above in PurePosixPath(path).parents):
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(real, place)
        # Open to the sandbox's uid, which nobody knows beforehand; the state directory itself is private.
        place.chmod(0o777 if real.stat().st_mode & 0o100 else 0o666)
        files[path] = sha256_of(place)
        size += place.stat().st_size
    for folder, _, _ in os.walk(target):
        os.chmod(folder, 0o777)  # noqa: S103 - as above
    return size


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _resolved(entry: os.DirEntry[str]) -> Path | None:
    """The regular file that `entry` is or leads to; None where there is none."""
    try:
        real = Path(entry.path).resolve(strict=True)
    except RuntimeError:  # a link to itself, up to Python 3.12
        return None
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):  # a link to nowhere, or to itself
            return None
        raise
    return real if real.is_file() else None

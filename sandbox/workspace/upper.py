"""Read what a run left in an overlay's upper layer: bounded, by directory descriptors, following nothing.

Only the standard library is used, and only this file: where the controller is not root the same code
runs inside a helper container as `python3 -I -c SOURCE`, taking a JSON request on its command line
and answering with JSON. Formats: Documentation/filesystems/overlayfs.rst, mounted with `userxattr`:
a whiteout is a character device 0/0, an opaque directory has the xattr user.overlay.opaque = "y".
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import sys
from collections.abc import Iterator
from typing import Any

DEEPEST = 100
MOST_ENTRIES = 50_000
MOST_LISTED = 2_000
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink"}


def shown(name: bytes) -> str:
    """`name` as text that any terminal, JSON document and log can hold."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in name.decode("utf-8", "backslashreplace"))


class Scan:
    """One walk over `upper` against the `lowers` it was mounted over; `changes` lists what differs."""

    def __init__(self, upper: str, lowers: list[str]) -> None:
        self.changes: list[dict[str, Any]] = []
        self.refused: list[str] = []
        self.truncated = False
        self.bytes = 0
        self._entries = 0
        roots = [os.open(lower, _DIRECTORY) for lower in lowers]
        top = os.open(upper, _DIRECTORY)
        try:
            self._directory(top, roots, b"", 0)
        finally:
            for descriptor in (top, *roots):
                os.close(descriptor)

    def result(self) -> dict[str, Any]:
        """The change set as JSON types: `paths`, `refused`, `truncated`, `bytes`."""
        return {
            "paths": self.changes,
            "refused": self.refused,
            "truncated": self.truncated,
            "bytes": self.bytes,
        }

    def _directory(self, upper: int, lowers: list[int], path: bytes, depth: int) -> None:
        present = set()
        for name in sorted(os.listdir(f"/proc/self/fd/{upper}".encode())):
            self._entries += 1
            if self._entries > MOST_ENTRIES:
                self.truncated = True
                return
            present.add(name)
            self._entry(upper, lowers, name, path + name, depth)
        if lowers and _opaque(upper):
            for name in sorted(_lower_names(lowers) - present):
                self._add(path + name, "deleted", "nothing", 0)

    def _entry(self, upper: int, lowers: list[int], name: bytes, path: bytes, depth: int) -> None:
        found = os.stat(name, dir_fd=upper, follow_symlinks=False)
        below = None if depth and not lowers else _topmost(lowers, name)
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "other")
        if stat.S_ISCHR(found.st_mode) and found.st_rdev == 0:
            if below is not None:
                self._add(path, "deleted", "nothing", 0)
            return
        if kind == "directory":
            self._subdirectory(upper, lowers, name, path, depth, below)
            return
        size = found.st_size if kind == "file" else 0
        self.bytes += found.st_blocks * 512
        if kind == "other":
            self._refuse(path, "a device, socket or FIFO")
        if below is None:
            self._add(path, "added", kind, size)
        elif stat.S_IFMT(below.st_mode) != stat.S_IFMT(found.st_mode):
            self._add(path, "replaced", kind, size)
        elif not _same(upper, lowers, name, found, below):
            self._add(path, "modified", kind, size)

    def _subdirectory(
        self,
        upper: int,
        lowers: list[int],
        name: bytes,
        path: bytes,
        depth: int,
        below: os.stat_result | None,
    ) -> None:
        if below is None:
            self._add(path, "added", "directory", 0)
        elif not stat.S_ISDIR(below.st_mode):
            self._add(path, "replaced", "directory", 0)
        if depth >= DEEPEST:
            self._refuse(path, f"deeper than {DEEPEST} levels")
            return
        inner = os.open(name, _DIRECTORY, dir_fd=upper)
        inner_lowers = _open_lowers(lowers, name)
        try:
            self._directory(inner, inner_lowers, path + b"/", depth + 1)
        finally:
            for descriptor in (inner, *inner_lowers):
                os.close(descriptor)

    def _add(self, path: bytes, change: str, kind: str, size: int) -> None:
        if len(self.changes) >= MOST_LISTED:
            self.truncated = True
            return
        self.changes.append({"path": shown(path), "change": change, "kind": kind, "size": size})

    def _refuse(self, path: bytes, why: str) -> None:
        if len(self.refused) < 100:
            self.refused.append(f"{shown(path)}: {why}")


def _opaque(descriptor: int) -> bool:
    try:
        return os.getxattr(descriptor, "user.overlay.opaque") == b"y"
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP):
            return False
        raise


def _lower_names(lowers: list[int]) -> set[bytes]:
    """Names visible through the stacked lower directories."""
    seen: set[bytes] = set()
    hidden: set[bytes] = set()
    for lower in lowers:
        for name in os.listdir(f"/proc/self/fd/{lower}".encode()):
            if name not in seen and name not in hidden:
                found = os.stat(name, dir_fd=lower, follow_symlinks=False)
                (hidden if _whiteout(found) else seen).add(name)
    return seen


def _whiteout(found: os.stat_result) -> bool:
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def _topmost(lowers: list[int], name: bytes) -> os.stat_result | None:
    """What the stacked lowers show under `name`, or None."""
    for lower in lowers:
        try:
            found = os.stat(name, dir_fd=lower, follow_symlinks=False)
        except FileNotFoundError:
            continue
        return None if _whiteout(found) else found
    return None


def _open_lowers(lowers: list[int], name: bytes) -> list[int]:
    """The lower directories that merge under `name`, topmost first."""
    opened: list[int] = []
    for lower in lowers:
        try:
            found = os.stat(name, dir_fd=lower, follow_symlinks=False)
        except FileNotFoundError:
            continue
        if not stat.S_ISDIR(found.st_mode):
            break
        opened.append(os.open(name, _DIRECTORY, dir_fd=lower))
    return opened


def _same(upper: int, lowers: list[int], name: bytes, found: os.stat_result, below: os.stat_result) -> bool:
    """Whether the upper's file or symlink has the lower's content and executable bit."""
    lower = next(d for d in lowers if _exists(d, name))
    if stat.S_ISLNK(found.st_mode):
        return os.readlink(name, dir_fd=upper) == os.readlink(name, dir_fd=lower)
    if not stat.S_ISREG(found.st_mode) or found.st_size != below.st_size:
        return False
    if bool(found.st_mode & 0o100) != bool(below.st_mode & 0o100):
        return False
    return _digest(upper, name) == _digest(lower, name)


def _exists(directory: int, name: bytes) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _digest(directory: int, name: bytes) -> str:
    with open(os.open(name, _FILE, dir_fd=directory), "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Collector:
    """Copies declared paths out of an upper layer into an empty directory of ours."""

    def __init__(self, upper: str, target: str, most_bytes: int, most_files: int) -> None:
        self.files: dict[str, str] = {}
        self.refused: list[str] = []
        self._upper, self._target = upper, target
        self._bytes, self._left = most_bytes, most_files

    def collect(self, path: str) -> None:
        """Copy the file or directory at `path` (regular files only, nothing followed)."""
        parts = os.fsencode(path).split(b"/")
        directory = os.open(self._upper, _DIRECTORY)
        try:
            for part in parts[:-1]:
                try:
                    inner = os.open(part, _DIRECTORY, dir_fd=directory)
                except OSError:
                    return
                os.close(directory)
                directory = inner
            self._entry(directory, parts[-1], os.fsencode(path), 0)
        finally:
            os.close(directory)

    def _entry(self, directory: int, name: bytes, path: bytes, depth: int) -> None:
        try:
            found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return
        if stat.S_ISDIR(found.st_mode):
            if depth >= DEEPEST:
                self.refused.append(f"{shown(path)}: deeper than {DEEPEST} levels")
                return
            inner = os.open(name, _DIRECTORY, dir_fd=directory)
            try:
                for child in sorted(os.listdir(f"/proc/self/fd/{inner}".encode())):
                    if len(self.refused) >= 100:
                        return
                    self._entry(inner, child, path + b"/" + child, depth + 1)
            finally:
                os.close(inner)
        elif not stat.S_ISREG(found.st_mode):
            if not _whiteout(found):
                self.refused.append(f"{shown(path)}: not a regular file")
        elif found.st_size > self._bytes:
            self.refused.append(f"{shown(path)}: over the size limit for artifacts")
        elif self._left <= 0:
            self.refused.append(f"{shown(path)}: over the limit on the number of artifacts")
        else:
            self._copy(directory, name, path)

    def _copy(self, directory: int, name: bytes, path: bytes) -> None:
        target = os.path.join(os.fsencode(self._target), path)
        os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
        digest = hashlib.sha256()
        written = 0
        with (
            open(os.open(name, _FILE, dir_fd=directory), "rb", buffering=0) as source,
            open(target, "xb", buffering=0) as copy,
        ):
            for block in _blocks(source.fileno()):
                written += len(block)
                if written > self._bytes:
                    self.refused.append(f"{shown(path)}: grew over the size limit for artifacts")
                    os.unlink(target)
                    return
                digest.update(block)
                copy.write(block)
        os.chmod(target, 0o644)
        self._bytes -= written
        self._left -= 1
        self.files[shown(path)] = digest.hexdigest()


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Hex SHA-256 of the file at `path`."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _blocks(descriptor: int) -> Iterator[bytes]:
    while block := os.read(descriptor, 1 << 20):
        yield block


def remove_tree(path: str) -> None:
    """Remove the tree at `path`, whatever its depth and modes, following nothing; absent is fine."""
    try:
        descriptor = os.open(path, _DIRECTORY)
    except FileNotFoundError:
        return
    except OSError:
        os.unlink(path)
        return
    try:
        # Deep trees are flattened: a directory inside another one is moved up to the root first.
        moved = 0
        while True:
            pending = os.listdir(f"/proc/self/fd/{descriptor}".encode())
            if not pending:
                break
            for name in pending:
                try:
                    os.unlink(name, dir_fd=descriptor)
                    continue
                except (IsADirectoryError, PermissionError):
                    pass
                inner = _open_for_removal(name, descriptor)
                try:
                    for child in os.listdir(f"/proc/self/fd/{inner}".encode()):
                        try:
                            os.unlink(child, dir_fd=inner)
                        except (IsADirectoryError, PermissionError):
                            moved += 1
                            os.rename(child, b".removing-%d" % moved, src_dir_fd=inner, dst_dir_fd=descriptor)
                finally:
                    os.close(inner)
                os.rmdir(name, dir_fd=descriptor)
    finally:
        os.close(descriptor)
    os.rmdir(path)


def _open_for_removal(name: bytes, directory: int) -> int:
    try:
        return os.open(name, _DIRECTORY, dir_fd=directory)
    except PermissionError:
        os.chmod(name, 0o700, dir_fd=directory)
        return os.open(name, _DIRECTORY, dir_fd=directory)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Do one request of the controller: `scan` or `collect`."""
    if request["do"] == "scan":
        return Scan(request["upper"], request["lowers"]).result()
    if request["do"] == "collect":
        collector = Collector(request["upper"], request["target"], request["bytes"], request["files"])
        for path in request["paths"]:
            collector.collect(path)
        return {"files": collector.files, "refused": collector.refused}
    raise ValueError(request["do"])


if __name__ == "__main__":
    json.dump(answer(json.loads(sys.argv[1])), sys.stdout)

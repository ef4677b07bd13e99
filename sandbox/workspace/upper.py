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
from contextlib import suppress
from typing import Any

DEEPEST = 100
MOST_ENTRIES = 50_000
MOST_LISTED = 2_000
LONGEST_PATH = 1_000
MOST_REFUSED = 100
# Reading a layer never gives these: what we write to is at its end.
_OUR_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink"}


def shown(name: bytes) -> str:
    """`name` as text that any terminal, JSON document and log can hold; two names never give the same text."""
    return "".join(map(_shown_character, name.decode("utf-8", "surrogateescape")))


def _shown_character(character: str) -> str:
    code = ord(character)
    if character == "\\":
        return "\\\\"
    if character.isprintable():
        return character
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80 or code >> 8 == 0x20:  # \\x20.. is no byte and two digits: a space is never escaped
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


class Scan:
    """One walk over `upper` against the `lowers` it was mounted over; `changes` lists what differs.

    At most MOST_LISTED additions are listed (`truncated`), and every other change. `incomplete`: the walk
    stopped at MOST_ENTRIES, or could not read something, so that changes may be missing.

    `copied` is None for an overlay's upper layer. For a workspace that is a copy of the lowers it is the number of
    entries that were copied: what is missing from it was deleted, what equals the lowers is no change.
    """

    def __init__(self, upper: str, lowers: list[str], *, copied: int | None = None) -> None:
        self.changes: list[dict[str, Any]] = []
        self.refused: list[str] = []
        self.truncated = self.incomplete = False
        self.bytes = 0
        self._entries = self._added = 0
        self._most_entries = MOST_ENTRIES + (copied or 0)
        self._is_copy = copied is not None
        roots = [os.open(lower, _DIRECTORY) for lower in lowers]
        top = os.open(upper, _DIRECTORY)
        try:
            self._directory(top, roots, b"", 0, opaque=self._is_copy)
        finally:
            for descriptor in (top, *roots):
                os.close(descriptor)

    def result(self) -> dict[str, Any]:
        """The change set as JSON types: `paths`, `refused`, `truncated`, `incomplete`, `bytes`."""
        marks = {"truncated": self.truncated, "incomplete": self.incomplete}
        return {"paths": self.changes, "refused": self.refused, **marks, "bytes": self.bytes}

    def _directory(self, upper: int, lowers: list[int], path: bytes, depth: int, *, opaque: bool) -> None:
        # Below an opaque directory nothing of the lowers shows, though the kernel marks the topmost one alone.
        opaque = opaque or (bool(lowers) and _opaque(upper))
        present = set()
        for name in sorted(os.listdir(f"/proc/self/fd/{upper}".encode())):
            self._entries += 1
            if self._entries > self._most_entries:
                self.truncated = self.incomplete = True
                return
            present.add(name)
            try:
                self._entry(upper, lowers, name, path + name, depth, opaque=opaque)
            except OSError as error:
                self._refuse(path + name, f"cannot be read: {error.strerror}")
                self.incomplete = self.incomplete or bool(lowers)
        if lowers and opaque:
            for name in sorted(lower_names(lowers) - present):
                self._add(path + name, "deleted", "nothing", 0)

    def _entry(self, upper: int, lowers: list[int], name: bytes, path: bytes, depth: int, *, opaque: bool) -> None:
        found = os.stat(name, dir_fd=upper, follow_symlinks=False)
        below = None if depth and not lowers else topmost(lowers, name)
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "other")
        if _whiteout(found):
            if below is not None:
                self._add(path, "deleted", "nothing", 0)
            return
        size = found.st_size if kind == "file" else 0
        if kind != "directory":
            self.bytes += found.st_blocks * 512
        if kind == "other":
            self._refuse(path, "a device, socket or FIFO")
        if below is None:
            self._add(path, "added", kind, size)
        elif stat.S_IFMT(below.st_mode) != stat.S_IFMT(found.st_mode):
            self._add(path, "replaced", kind, size)
        elif kind != "directory" and not _same(upper, lowers, name, found, below):
            self._add(path, "modified", kind, size)
        elif kind != "directory" and self._is_copy:
            self.bytes -= found.st_blocks * 512  # it was there before
        if kind == "directory":
            self._subdirectory(upper, lowers, name, path, depth, opaque=opaque)

    def _subdirectory(
        self, upper: int, lowers: list[int], name: bytes, path: bytes, depth: int, *, opaque: bool
    ) -> None:
        if depth >= DEEPEST:
            self._refuse(path, f"deeper than {DEEPEST} levels")
            self.incomplete = self.incomplete or bool(lowers)
            return
        inner_lowers: list[int] = []
        inner = os.open(name, _DIRECTORY, dir_fd=upper)
        try:
            open_lowers(lowers, name, inner_lowers)
            self._directory(inner, inner_lowers, path + b"/", depth + 1, opaque=opaque)
        finally:
            for descriptor in (inner, *inner_lowers):
                os.close(descriptor)

    def _add(self, path: bytes, change: str, kind: str, size: int) -> None:
        if change == "added":
            if self._added >= MOST_LISTED:
                self.truncated = True
                return
            self._added += 1
        self.changes.append({"path": shown(path), "change": change, "kind": kind, "size": size})

    def _refuse(self, path: bytes, why: str) -> None:
        if len(self.refused) < MOST_REFUSED:
            self.refused.append(f"{shown(path)}: {why}")


def _opaque(descriptor: int) -> bool:
    try:
        return os.getxattr(descriptor, "user.overlay.opaque") == b"y"
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP):
            return False
        raise


def lower_names(lowers: list[int]) -> set[bytes]:
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


def topmost(lowers: list[int], name: bytes) -> os.stat_result | None:
    """What the stacked lowers show under `name`, or None."""
    for lower in lowers:
        try:
            found = os.stat(name, dir_fd=lower, follow_symlinks=False)
        except FileNotFoundError:
            continue
        return None if _whiteout(found) else found
    return None


def open_lowers(lowers: list[int], name: bytes, opened: list[int]) -> None:
    """Put the lower directories that merge under `name` into `opened`, topmost first."""
    for lower in lowers:
        try:
            found = os.stat(name, dir_fd=lower, follow_symlinks=False)
        except FileNotFoundError:
            continue
        if not stat.S_ISDIR(found.st_mode):
            break
        opened.append(os.open(name, _DIRECTORY, dir_fd=lower))


def _same(upper: int, lowers: list[int], name: bytes, found: os.stat_result, below: os.stat_result) -> bool:
    """Whether the upper's file or symlink has the lower's content and executable bit."""
    lower = next(d for d in lowers if exists(d, name))
    if stat.S_ISLNK(found.st_mode):
        return os.readlink(name, dir_fd=upper) == os.readlink(name, dir_fd=lower)
    if not stat.S_ISREG(found.st_mode) or found.st_size != below.st_size or (found.st_mode ^ below.st_mode) & 0o100:
        return False
    return _digest(upper, name) == _digest(lower, name)


def exists(directory: int, name: bytes) -> bool:
    """Whether the directory has an entry of that name."""
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _digest(directory: int, name: bytes) -> str:
    with open(os.open(name, _FILE, dir_fd=directory), "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Collector:
    """Copies declared paths out of an upper layer into an empty directory of ours.

    `files` has the digests by shown path; below a declared directory that is the real path too, for what
    has another name is refused.
    """

    def __init__(self, upper: str, target: str, most_bytes: int, most_files: int) -> None:
        self.files: dict[str, str] = {}
        self.refused: list[str] = []
        self._upper, self._target = upper, target
        self._bytes, self._left = most_bytes, most_files

    def collect(self, path: str) -> None:
        """Copy the file or directory at `path` (regular files only, nothing followed).

        What cannot be copied is refused; raises OSError where the target is full or read-only.
        """
        raw = os.fsencode(path)
        parts = raw.split(b"/")
        if not {b"", b".", b".."}.isdisjoint(parts):
            self._refuse(raw, "not a plain path")
            return
        directory = os.open(self._upper, _DIRECTORY)
        try:
            for part in parts[:-1]:
                inner = os.open(part, _DIRECTORY, dir_fd=directory)
                os.close(directory)
                directory = inner
            self._entry(directory, parts[-1], raw, 0)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                self._refuse_error(raw, error)
        finally:
            os.close(directory)

    def _entry(self, directory: int, name: bytes, path: bytes, depth: int) -> None:
        try:
            found = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if len(path) > LONGEST_PATH:
                self._refuse(path, f"a path longer than {LONGEST_PATH} bytes")
            elif depth and shown(name) != os.fsdecode(name):
                self._refuse(path, "a name that cannot be shown as it is")
            elif stat.S_ISDIR(found.st_mode):
                self._directory(directory, name, path, depth)
            elif not stat.S_ISREG(found.st_mode):
                if not _whiteout(found):
                    self._refuse(path, "not a regular file")
            elif found.st_size > self._bytes:
                self._refuse(path, "over the size limit for artifacts")
            elif self._left <= 0:
                self._refuse(path, "over the limit on the number of artifacts")
            elif shown(path) not in self.files:
                self._copy(directory, name, path)
        except FileNotFoundError:
            return
        except OSError as error:
            self._refuse_error(path, error)

    def _directory(self, directory: int, name: bytes, path: bytes, depth: int) -> None:
        if depth >= DEEPEST:
            self._refuse(path, f"deeper than {DEEPEST} levels")
            return
        inner = os.open(name, _DIRECTORY, dir_fd=directory)
        try:
            for child in sorted(os.listdir(f"/proc/self/fd/{inner}".encode())):
                if len(self.refused) >= MOST_REFUSED:
                    return
                self._entry(inner, child, path + b"/" + child, depth + 1)
        finally:
            os.close(inner)

    def _copy(self, directory: int, name: bytes, path: bytes) -> None:
        target = os.path.join(os.fsencode(self._target), path)
        digest, written = hashlib.sha256(), 0
        with open(os.open(name, _FILE, dir_fd=directory), "rb", buffering=0) as source:
            os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
            try:
                with open(target, "xb") as copy:
                    while block := source.read(1 << 20):
                        written += len(block)
                        if written > self._bytes:
                            raise OSError(errno.EFBIG, "grew over the size limit for artifacts")
                        digest.update(block)
                        copy.write(block)
                os.chmod(target, 0o644)
            except OSError:
                with suppress(FileNotFoundError):
                    os.unlink(target)
                raise
        self._bytes -= written
        self._left -= 1
        self.files[shown(path)] = digest.hexdigest()

    def _refuse(self, path: bytes, why: str) -> None:
        self.refused.append(f"{shown(path)}: {why}")

    def _refuse_error(self, path: bytes, error: OSError) -> None:
        if error.errno in _OUR_TROUBLE:
            raise error
        self._refuse(path, f"cannot be copied: {error.strerror}")


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Hex SHA-256 of the file at `path`."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_tree(path: str) -> None:
    """Remove the tree at `path`, whatever its depth, names and modes, following nothing; absent is fine."""
    if not os.path.lexists(path):
        return
    if os.path.islink(path) or not os.path.isdir(path):
        os.unlink(path)
        return
    descriptor = _open_for_removal(os.fsencode(path), None)
    try:
        # Deep trees are flattened: a directory inside another one is moved up to the root first.
        moved = 0
        while pending := os.listdir(f"/proc/self/fd/{descriptor}".encode()):
            for name in pending:
                if not _unlinked(name, descriptor):
                    moved = _emptied(name, descriptor, moved)
                    os.rmdir(name, dir_fd=descriptor)
    finally:
        os.close(descriptor)
    os.rmdir(path)


def _unlinked(name: bytes, directory: int) -> bool:
    try:
        os.unlink(name, dir_fd=directory)
    except (IsADirectoryError, PermissionError):
        return False
    return True


def _emptied(name: bytes, top: int, moved: int) -> int:
    """Empty the directory `name` of `top`, its directories moved to `top`; returns the last number used."""
    inner = _open_for_removal(name, top)
    try:
        for child in os.listdir(f"/proc/self/fd/{inner}".encode()):
            if _unlinked(child, inner):
                continue
            os.close(_open_for_removal(child, inner))  # moving a directory needs the right to write to it
            moved += 1
            while exists(top, b".removing-%d" % moved):
                moved += 1
            os.rename(child, b".removing-%d" % moved, src_dir_fd=inner, dst_dir_fd=top)
    finally:
        os.close(inner)
    return moved


def _open_for_removal(name: bytes, directory: int | None) -> int:
    """The directory `name`, open, with its owner's rights given to itself where that is allowed."""
    place = os.open(name, os.O_PATH | _DIRECTORY, dir_fd=directory)
    try:
        with suppress(PermissionError):
            os.chmod(f"/proc/self/fd/{place}", 0o700)
        return os.open(b".", _DIRECTORY, dir_fd=place)
    finally:
        os.close(place)


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

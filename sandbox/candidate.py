"""Freeze a candidate before it runs: base + patch as a commit in our own object store, hashed.

What is promoted later is this very tree. The working tree is read by descriptors from its root, so
that a symlink planted in it leads nowhere.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

import pathspec

from arsandbox.policies.edits import Edit, EditRules
from arsandbox.policies.model import Policy
from arsandbox.sandbox.errors import UsageError
from arsandbox.sandbox.models import Patch
from arsandbox.sandbox.objects import ObjectStore, TreeEntry
from arsandbox.sandbox.repository import Repository
from arsandbox.sandbox.stat_cache import StatCache

# A path, its new content (None: deleted) and its git mode.
Edited: TypeAlias = tuple[str, TreeEntry | bytes | None, str]
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_LARGEST_FILE = 64 * 1024**2
_DEEPEST = 50
_LARGE_TREE = 500
_LONGEST_RULE, _MOST_STARS, _MOST_RULES = 200, 3, 2000


@dataclass(frozen=True)
class Candidate:
    """A frozen candidate: `commit` lives in our store over `base`; `diff` is the unified patch."""

    base: str
    commit: str
    tree: str
    patch: Patch
    diff: bytes
    left_out: tuple[str, ...] = ()

    @property
    def is_base(self) -> bool:
        """Whether nothing was changed: a baseline."""
        return not self.patch.files


def from_commit(objects: ObjectStore, base: str, commit: str) -> Candidate:
    """The candidate whose tree is that of `commit`, against `base`."""
    return _frozen(objects, base, commit)


def from_patch(objects: ObjectStore, base: str, file: Path) -> Candidate:
    """The candidate that `file`, a git diff, makes of `base`. Raises UsageError."""
    try:
        size = file.stat().st_size
        patch = file.read_bytes() if size <= _LARGEST_FILE else b""
    except OSError as error:
        raise UsageError(f"--patch {file}: {error.strerror}") from error
    if size > _LARGEST_FILE:
        raise UsageError(f"--patch {file}: is larger than 64 MiB")
    if not patch.strip():
        raise UsageError(f"--patch {file}: is empty", hint="make it with: git diff > edit.patch")
    return from_diff(objects, base, patch, name=f"--patch {file}")


def from_diff(objects: ObjectStore, base: str, diff: bytes, *, name: str) -> Candidate:
    """The candidate that `diff`, a git diff called `name` in messages, makes of `base`. Raises UsageError."""
    return _frozen(objects, base, objects.apply_patch(base, diff, name=name))


def from_worktree(repository: Repository, base: str, rules: EditRules) -> Candidate:
    """The candidate that the working tree makes of `base`: tracked files, and new ones in `editable`.

    Untracked files elsewhere are no part of it and are named in `left_out`, up to twenty.
    """
    tracked = _tracked(repository.objects, base)
    cache = _cache(repository) if len(tracked) > _LARGE_TREE else None
    edits, left_out = _edits(repository.objects, base, repository.worktree, rules, tracked, cache)
    if cache is not None:
        cache.save()
    commit = repository.objects.commit_edit(base, edits) if edits else base
    return _frozen(repository.objects, base, commit, tuple(left_out))


def from_copy(objects: ObjectStore, base: str, copy: Path, rules: EditRules) -> Candidate:
    """The candidate that a copy of `base` in `copy` makes of it; only what is editable counts.

    Other changed and new files are named in `left_out`, up to twenty.
    """
    edits, left_out = _edits(objects, base, copy, rules, _tracked(objects, base), None)
    counted = [edit for edit in edits if rules.is_editable(edit[0])]
    others = [path for path, _, _ in edits if not rules.is_editable(path)]
    commit = objects.commit_edit(base, counted) if counted else base
    return _frozen(objects, base, commit, (*others, *left_out)[:20])


def from_edits(objects: ObjectStore, base: str, edits: Sequence[Edited]) -> Candidate:
    """The candidate that `edits` (path; content, or None to delete; git mode) make of `base`."""
    return _frozen(objects, base, objects.commit_edit(base, edits) if edits else base)


def _tracked(objects: ObjectStore, base: str) -> dict[str, TreeEntry]:
    return {entry.path: entry for entry in objects.entries(objects.tree_of(base))}


def _edits(
    objects: ObjectStore, base: str, place: Path, rules: EditRules, tracked: dict[str, TreeEntry],
    cache: StatCache | None,
) -> tuple[list[Edited], list[str]]:  # fmt: skip
    """What the directory `place` changes of `base`, and what in it is no part of that."""
    edits: list[Edited] = []
    root = os.open(place, _DIRECTORY)
    try:
        found, left_out = _walk(root, set(tracked), rules, _ignored(objects, base))
        for path in sorted(tracked.keys() | found):
            before = tracked.get(path)
            if cache is not None and before is not None and cache.holds(path, before.mode, before.blob):
                continue
            now = _read(root, path, (objects, before) if before is not None else None)
            if now is None and before is not None and before.mode != "160000":
                edits.append((path, None, ""))
            elif now is not None:
                mode, content = now
                if content is not None and (
                    before is None or mode != before.mode or _blob_id(content, before.blob) != before.blob
                ):
                    edits.append((path, content, mode))
                elif cache is not None and before is not None:
                    cache.remember(path, mode, before.blob)
    finally:
        os.close(root)
    return edits, left_out


def _cache(repository: Repository) -> StatCache:
    name = hashlib.sha256(os.fsencode(repository.worktree)).hexdigest()[:16]
    return StatCache(repository.state / f"worktree-{name}.json", repository.worktree)


def refusals(candidate: Candidate, objects: ObjectStore, rules: EditRules, policy: Policy) -> list[str]:
    """Every reason why the policy refuses the candidate, one line each; empty when it may run."""
    edits = [
        Edit(change.path, change.old.mode if change.old else None, change.new.mode if change.new else None)
        for change in objects.changes(candidate.base, candidate.commit)
    ]
    lines = rules.refusals(edits)
    if len(edits) > policy.patch_files:
        lines.append(f"the patch changes {len(edits)} files; at most {policy.patch_files} are allowed")
    if len(candidate.diff) > policy.patch_bytes:
        lines.append(f"the patch has {len(candidate.diff)} bytes; at most {policy.patch_bytes} are allowed")
    if objects.holds_binary(candidate.base, candidate.commit):
        lines.append("the patch changes a binary file; only text may be edited")
    return lines


def _frozen(objects: ObjectStore, base: str, commit: str, left_out: tuple[str, ...] = ()) -> Candidate:
    diff = objects.unified_diff(base, commit)
    inserted, deleted = objects.line_counts(base, commit)
    files = tuple(change.path.encode("utf-8", "backslashreplace").decode() for change in objects.changes(base, commit))
    patch = Patch(sha256=hashlib.sha256(diff).hexdigest(), files=files, insertions=inserted, deletions=deleted)
    return Candidate(base, commit, objects.tree_of(commit), patch, diff, left_out)


def _walk(
    root: int, tracked: set[str], rules: EditRules, ignored: pathspec.GitIgnoreSpec
) -> tuple[set[str], list[str]]:
    """Untracked files that are editable and not ignored, and the first few others at the top level."""
    found: set[str] = set()
    whole = False
    for path in rules.editable:
        literal = not any(character in path for character in "*?[")
        if literal and path not in tracked and _read(root, path) is not None:
            found.add(path)
        whole |= not literal or _is_directory(root, path)
    if whole:
        for directory, below, names, _ in os.fwalk(".", dir_fd=root, follow_symlinks=False):
            inside = "" if directory == "." else directory.removeprefix("./") + "/"
            too_deep = inside.count("/") >= _DEEPEST
            below[:] = [n for n in below if not too_deep and _is_ours(n) and not ignored.match_file(f"{inside}{n}/")]
            new = (inside + name for name in names if _is_ours(name) and inside + name not in tracked)
            found |= {path for path in new if not ignored.match_file(path) and rules.is_editable(path)}
    top = {path.split("/", 1)[0] for path in tracked | found} | {".git"}
    names = sorted(name for name in os.listdir(f"/proc/self/fd/{root}") if name not in top)
    return found, [name for name in names if not ignored.match_file(name + "/" * _is_directory(root, name))][:20]


def _is_ours(name: str) -> bool:
    return name.lower() != ".git"


def _ignored(objects: ObjectStore, base: str) -> pathspec.GitIgnoreSpec:
    """The base commit's ignore rules (top level), and what Python leaves behind.

    What the working tree says is the candidate's word and not asked. Rules that are no patterns, or
    whose many stars would take long to match, count for nothing.
    """
    text = os.fsdecode(objects.read(f"{base}:.gitignore") or b"")
    lines = ["__pycache__/", "*.py[co]"]
    for line in text.splitlines()[:_MOST_RULES]:
        if len(line) <= _LONGEST_RULE and len(re.findall(r"\*+", line)) <= _MOST_STARS:
            try:
                pathspec.GitIgnoreSpec.from_lines([line])
            except (ValueError, re.error):
                continue
            lines.append(line)
    return pathspec.GitIgnoreSpec.from_lines(lines)


def _is_directory(root: int, path: str) -> bool:
    try:
        return stat.S_ISDIR(os.stat(path, dir_fd=root, follow_symlinks=False).st_mode)
    except OSError:
        return False


def _read(root: int, path: str, base: tuple[ObjectStore, TreeEntry] | None = None) -> tuple[str, bytes | None] | None:
    """(git mode, content) of the file or symlink at `path`, or None where there is none.

    The content of a file that is too large for a candidate is None where it is that of the entry in `base`. Raises
    UsageError for another one, and for what cannot be read.
    """
    *parents, name = path.split("/")
    directory = os.dup(root)
    try:
        for parent in parents:
            inner = os.open(parent, _DIRECTORY, dir_fd=directory)
            os.close(directory)
            directory = inner
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if stat.S_ISLNK(found.st_mode):
            return "120000", os.fsencode(os.readlink(name, dir_fd=directory))
        if not stat.S_ISREG(found.st_mode):
            return None
        mode = "100755" if found.st_mode & 0o100 else "100644"
        with open(os.open(name, _FILE, dir_fd=directory), "rb") as file:
            if found.st_size <= _LARGEST_FILE:
                return mode, file.read(_LARGEST_FILE)
            if base is not None and base[1].mode == mode and _is_blob(file, found.st_size, *base):
                return mode, None
        raise UsageError(
            f"{path}: is larger than 64 MiB and is not what the base has; it cannot be part of a candidate",
            hint="take the change back, or commit it to the base",
        )
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    finally:
        os.close(directory)


def _is_blob(file: BinaryIO, size: int, objects: ObjectStore, entry: TreeEntry) -> bool:
    """Whether the `size` bytes of `file` are the content of `entry`; read piece by piece, and only at its own size."""
    blob = entry.blob
    if int(objects.git("cat-file", "-s", blob)) != size:
        return False
    digest = hashlib.new("sha1" if len(blob) == 40 else "sha256", b"blob %d\0" % size, usedforsecurity=False)
    while size > 0 and (piece := file.read(min(size, 1024**2))):
        digest.update(piece)
        size -= len(piece)
    return digest.hexdigest() == blob


def _blob_id(content: bytes, like: str) -> str:
    """The id git gives the blob `content`, by the same hash as the id `like`."""
    algorithm = "sha1" if len(like) == 40 else "sha256"
    return hashlib.new(algorithm, b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()

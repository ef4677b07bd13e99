"""A private git object store that reads the user's objects and keeps ours.

It is a bare repository in the state directory whose `alternates` name the user's object directory.
All plumbing runs here: the user's git config, hooks, attributes and index are never consulted, and
a losing candidate never writes a byte into the user's repository.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from arsandbox.sandbox import state
from arsandbox.sandbox.errors import ConflictError, RepositoryError, UsageError
from arsandbox.sandbox.git_process import run_git
from arsandbox.sandbox.object_reader import PATCH_OPTIONS, ObjectReader

_DIRECTORY_MODE = "040000"
_INDEX = "index-"
_SILENT = "no message"
# How git begins where an object or the index cannot be written (object-file.c, wrapper.c, lockfile.c, read-cache.c).
_UNWRITTEN = re.compile(
    r"(?:error|fatal): (?:unable to (?:write|create|deflate)|insufficient perm|file write error|sha1 file|hash file)",
    re.IGNORECASE,
)
_MANY = 500  # paths that one git command gets as arguments


@dataclass(frozen=True)
class TreeEntry:
    """One file of a tree: `mode` as git writes it (`100644`, `100755`, `120000`, `160000`)."""

    path: str
    mode: str
    blob: str


@dataclass(frozen=True)
class Change:
    """One path that differs between two trees; `new` or `old` is None where the path is absent."""

    path: str
    old: TreeEntry | None
    new: TreeEntry | None


def unfinished(directory: Path) -> list[Path]:
    """What is being made for the store in `directory`, or was when a controller died: its owner holds a lock on it."""
    return [*directory.parent.glob(f"{directory.name}-*"), *directory.glob(f"{_INDEX}*")]


class ObjectStore:
    """Trees, blobs and candidate commits of one repository."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @classmethod
    def open(cls, directory: Path, *, alternate: Path, object_format: str, shallow: Path | None) -> ObjectStore:
        """Open or create the store in `directory` over the user's object directory `alternate`."""
        if not (directory / "HEAD").exists():
            fresh = Path(tempfile.mkdtemp(prefix=f"{directory.name}-", dir=directory.parent))
            with state.owned(fresh):
                run_git(
                    fresh,
                    ["init", "--quiet", "--bare", "--template=", f"--object-format={object_format}", str(fresh)],
                )
                try:
                    fresh.rename(directory)
                except OSError:
                    if not (directory / "HEAD").exists():
                        raise
                    shutil.rmtree(fresh)  # another controller was faster: its store is as good
        information = directory / "objects" / "info"
        information.mkdir(parents=True, exist_ok=True)
        alternates = information / "alternates"
        wanted = (_quote(str(alternate)) if "\n" in str(alternate) else os.fsencode(alternate)) + b"\n"
        if not alternates.exists() or alternates.read_bytes() != wanted:
            alternates.write_bytes(wanted)
        own_shallow = directory / "shallow"
        if shallow is not None:
            own_shallow.write_bytes(shallow.read_bytes())
        else:
            own_shallow.unlink(missing_ok=True)
        return cls(directory)

    def git(self, *arguments: str, stdin: bytes = b"", index: Path | None = None) -> bytes:
        """Standard output of one git command in the store. Raises RepositoryError."""
        return run_git(self.directory, arguments, stdin=stdin, index=index).stdout

    def holds(self, commit: str) -> bool:
        """Whether the commit is here or in the user's repository."""
        return run_git(self.directory, ["cat-file", "-e", f"{commit}^{{commit}}"], check=False).returncode == 0

    def tree_of(self, commit: str) -> str:
        """The tree id of `commit`."""
        return self.git("rev-parse", "--verify", "--end-of-options", f"{commit}^{{tree}}").decode().strip()

    def entries(self, tree: str) -> Iterator[TreeEntry]:
        """Every file, symlink and submodule of `tree`, in git's order. Raises RepositoryError, see `_listing`."""
        return (entry for entry in self._listing(tree, "-r") if entry.mode != _DIRECTORY_MODE)

    def _listing(self, tree: str, *arguments: str) -> Iterator[TreeEntry]:
        """What `git ls-tree -t` lists; directories come before what is in them.

        A tree is only an object that someone wrote: RepositoryError names a path that would lead out of
        the tree, is there twice, or is below something that is no directory.
        """
        seen: set[str] = set()
        directories = {""}
        for row in self.git("ls-tree", "-t", "-z", "--full-tree", *arguments[:1], tree, *arguments[1:]).split(b"\0"):
            if row:
                head, _, name = row.partition(b"\t")
                mode, _, blob = head.decode().split(" ")
                path = os.fsdecode(name)
                if not is_plain(path) or path in seen or path.rpartition("/")[0] not in directories:
                    raise _crafted(path)
                seen.add(path)
                if mode == _DIRECTORY_MODE:
                    directories.add(path)
                yield TreeEntry(path, mode, blob)

    def changes(self, old: str, new: str) -> list[Change]:
        """The paths in which the trees (or commits) differ; renames are a deletion and an addition.

        Raises RepositoryError for a path that no honest tree holds (see `_listing`).
        """
        rows = self.git("diff-tree", "-r", "-z", "--raw", "--no-renames", "--full-index", old, new).split(b"\0")
        found = []
        for head, name in zip(rows[0::2], rows[1::2], strict=False):
            path = os.fsdecode(name)
            old_mode, new_mode, old_blob, new_blob, _ = head.decode().lstrip(":").split(" ")
            found.append(
                Change(
                    path,
                    None if old_mode == "000000" else TreeEntry(path, old_mode, old_blob),
                    None if new_mode == "000000" else TreeEntry(path, new_mode, new_blob),
                )
            )
        self._check(new, found)
        return found

    def _check(self, tree: str, changes: list[Change]) -> None:
        """Raise RepositoryError unless every changed path is what `tree` holds there, and once."""
        wanted: dict[str, None] = {}
        for change in changes:
            if not is_plain(change.path):
                raise _crafted(change.path)
            if change.new is not None:
                parts = change.path.split("/")
                wanted.update({"/".join(parts[:end]): None for end in range(1, len(parts) + 1)})
        if not wanted:
            return
        rows = self._listing(tree, "-r") if len(wanted) > _MANY else self._listing(tree, "-t", "--", *wanted)
        held = {row.path: row for row in rows}
        for change in changes:
            if change.new is not None and held.get(change.path) != change.new:
                raise _crafted(change.path)

    def files_below(self, tree: str, path: str) -> list[str]:
        """The files of `tree` at or below `path` (literally), in git's order; empty where none."""
        return [row.path for row in self._listing(tree, "-r", "--", path) if row.mode != _DIRECTORY_MODE]

    def read(self, revision_path: str) -> bytes | None:
        """The blob at `<revision>:<path>`, or None where there is none."""
        done = run_git(self.directory, ["cat-file", "blob", revision_path], check=False)
        return done.stdout if done.returncode == 0 else None

    def blobs(self) -> AbstractContextManager[ObjectReader]:
        """A reader that streams many blobs through one git process."""
        return ObjectReader.open(self.directory)

    def unified_diff(self, old: str, new: str) -> bytes:
        """The patch from `old` to `new`, binary-safe, without external drivers or rename detection."""
        return self.git("diff-tree", *PATCH_OPTIONS, old, new)

    def line_counts(self, old: str, new: str) -> tuple[int, int]:
        """Inserted and deleted lines from `old` to `new` (binary files count as none)."""
        counts = [(plus, minus) for plus, minus in self._numstat(old, new) if plus != b"-"]
        return sum(int(plus) for plus, _ in counts), sum(int(minus) for _, minus in counts)

    def holds_binary(self, old: str, new: str) -> bool:
        """Whether a file that differs between `old` and `new` is binary to git (it counts no lines in it)."""
        return any(plus == b"-" for plus, _ in self._numstat(old, new))

    def _numstat(self, old: str, new: str) -> list[tuple[bytes, bytes]]:
        rows = self.git("diff-tree", "-r", "--numstat", "--no-renames", "-z", old, new).split(b"\0")
        return [(plus, minus) for plus, minus, _ in (row.split(b"\t", 2) for row in rows if row)]

    def commit_edit(self, parent: str, edits: Iterable[tuple[str, TreeEntry | bytes | None, str]]) -> str:
        """Write a commit over `parent` and return its id: costs the edit, not the size of the tree.

        Each edit is (path, content, mode): content is bytes, an entry whose blob exists, or None to
        delete. Deletions come first, so that a file can become a directory. Author and dates are fixed:
        the same edit gives the same commit.
        """
        stream = bytearray(b"feature done\ncommit refs/arsandbox/candidate\n")
        stream += b"committer arsandbox <arsandbox@localhost> 0 +0000\ndata 9\ncandidate\n"
        stream += b"from " + parent.encode() + b"\n"
        for path, content, mode in sorted(edits, key=lambda edit: edit[1] is not None):
            name = _quote(path)
            if content is None:
                stream += b"D " + name + b"\n"
            elif isinstance(content, TreeEntry):
                stream += b"M %s %s %s\n" % (mode.encode(), content.blob.encode(), name)
            else:
                stream += b"M %s inline %s\ndata %d\n" % (mode.encode(), name, len(content))
                stream += content + b"\n"
        # The ref only lives in this private store, under a name of this process: the id is the result.
        ref = f"refs/arsandbox/candidate-{os.getpid()}-{os.urandom(4).hex()}"
        stream = stream.replace(b"refs/arsandbox/candidate\n", ref.encode() + b"\n", 1)
        self.git("fast-import", "--quiet", "--force", stdin=bytes(stream) + b"done\n")
        commit = self.git("rev-parse", "--verify", ref).decode().strip()
        self.git("update-ref", "-d", ref)
        return commit

    def apply_patch(self, base: str, patch: bytes, *, name: str) -> str:
        """A commit that is `base` with `patch` applied; touches only the paths that the patch names.

        Raises ConflictError when the patch does not apply, UsageError when it is empty or leads out of the tree,
        RepositoryError when the store cannot be written.
        """
        # Backwards, git names what renames and copies come from.
        listed = [
            run_git(self.directory, ["apply", *backwards, "--numstat", "-z", "-"], stdin=patch, check=False)
            for backwards in ((), ("-R",))
        ]
        paths = sorted({path for done in listed for path in _numstat_paths(done.stdout)})
        if any(done.returncode != 0 for done in listed) or not paths:
            raise UsageError(
                f"{name}: holds no change that git can read",
                hint="make it with: git diff > edit.patch",
            )
        for path in paths:
            if not is_plain(path):
                raise UsageError(f"{name}: {path!r} leads out of the repository")
        present = b"".join(
            self.git("ls-tree", "-r", "-z", "--full-tree", base, "--", *paths[start : start + _MANY])
            for start in range(0, len(paths), _MANY)
        )
        with (
            tempfile.TemporaryDirectory(prefix=_INDEX, dir=self.directory) as scratch,
            state.owned(Path(scratch)),
        ):
            index = Path(scratch) / "index"
            self.git("update-index", "-z", "--index-info", stdin=present, index=index)
            apply = ["apply", "--cached", "--whitespace=nowarn"]
            done = run_git(self.directory, [*apply, "-"], stdin=patch, check=False, index=index)
            if done.returncode != 0:
                lines = done.stderr.decode(errors="replace").strip().splitlines() or [_SILENT]
                # A check writes nothing: where that fails, too, it is the patch.
                check = run_git(self.directory, [*apply, "--check", "-"], stdin=patch, check=False, index=index)
                if check.returncode == 0 and _is_unwritten(lines[0]):
                    raise RepositoryError(f"git apply failed: {lines[0].removeprefix('error: ')}")
                raise ConflictError(
                    f"{name}: does not apply to {base[:12]}: {lines[0].removeprefix('error: ')}",
                    hint="make it against the base commit: git diff > edit.patch",
                )
            after = self.git("ls-files", "-s", "-z", index=index)
        edits: list[tuple[str, TreeEntry | bytes | None, str]] = []
        seen = set()
        for row in after.split(b"\0"):
            if row:
                head, _, raw = row.partition(b"\t")
                mode, blob, _ = head.decode().split(" ")
                path = os.fsdecode(raw)
                seen.add(path)
                edits.append((path, TreeEntry(path, mode, blob), mode))
        edits += [(path, None, "") for path in paths if path not in seen]
        return self.commit_edit(base, edits)

    def merge_file(self, ours: bytes, base: bytes, theirs: bytes) -> bytes | None:
        """The three-way merge of one file's contents; None if the changes conflict, or if the file is binary to git.

        Raises RepositoryError when the three cannot be written.
        """
        with tempfile.TemporaryDirectory(prefix=_INDEX, dir=self.directory) as scratch, state.owned(Path(scratch)):
            files = [Path(scratch) / name for name in ("ours", "base", "theirs")]
            try:
                for file, content in zip(files, (ours, base, theirs), strict=True):
                    file.write_bytes(content)
            except OSError as error:
                raise RepositoryError(f"cannot merge in {self.directory}: {error.strerror}") from error
            done = run_git(self.directory, ["merge-file", "-p", "-q", *map(str, files)], check=False)
        return done.stdout if done.returncode == 0 else None


def is_plain(path: str) -> bool:
    """Whether `path` leads to a place below where it starts and not into a git directory."""
    return not any(part in ("", ".", "..") or part.lower() == ".git" for part in path.split("/"))


def _crafted(path: str) -> RepositoryError:
    return RepositoryError(f"a tree of the repository holds {path!r}, which git itself would never write")


def _numstat_paths(listing: bytes) -> list[str]:
    """Every path in `git apply --numstat -z`."""
    return [os.fsdecode(row.split(b"\t", 2)[2]) for row in listing.split(b"\0") if row]


def _is_unwritten(line: str) -> bool:
    """Whether git says that it could not write, or nothing at all; its other words may be about the patch."""
    return line == _SILENT or _UNWRITTEN.match(line) is not None


def _quote(path: str) -> bytes:
    """`path` as a C-style quoted string of git's."""
    raw = os.fsencode(path)
    escaped = raw.replace(b"\\", b"\\\\").replace(b'"', b'\\"').replace(b"\n", b"\\n")
    return b'"' + escaped + b'"'

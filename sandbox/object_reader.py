"""Many objects, or many patches, of a repository through one git process: a process each costs milliseconds."""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from arsandbox.sandbox.errors import RepositoryError
from arsandbox.sandbox.git_process import SAFE_OPTIONS, git_environment

# A patch is binary-safe, and depends on no external driver and no rename detection.
PATCH_OPTIONS = (
    "-p", "--binary", "--full-index", "--no-ext-diff", "--no-textconv", "--no-renames", "--no-color",
)  # fmt: skip


class ObjectReader:
    """Reads objects one after the other from `git cat-file --batch` (git-cat-file(1), BATCH OUTPUT)."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None and process.stdout is not None  # noqa: S101 - asked for pipes
        self._request, self._answer = process.stdin, process.stdout

    @classmethod
    @contextmanager
    def open(cls, git_directory: Path) -> Iterator[ObjectReader]:
        """A reader of the repository `git_directory`, for as long as the context lasts."""
        with (
            tempfile.TemporaryFile() as errors,
            subprocess.Popen(
                ["git", *SAFE_OPTIONS, "cat-file", "--batch"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd="/",
                env=git_environment(git_directory),
            ) as process,
        ):
            yield cls(process)

    def find(self, name: str, kind: str) -> bytes | None:
        """The content of the object `name`, or None where there is none or it is no `kind` (`blob`, `commit`).

        `name` is an object id: anything with a line break would be another request.
        """
        self._request.write(name.encode() + b"\n")
        self._request.flush()
        head = self._answer.readline().decode().split()
        if len(head) != 3:
            return None
        content = self._answer.read(int(head[2]))
        self._answer.read(1)
        return content if head[1] == kind else None

    def read(self, blob: str) -> bytes:
        """The content of `blob`. Raises RepositoryError when the repository lacks it."""
        content = self.find(blob, "blob")
        if content is None:
            raise RepositoryError(
                f"object {blob} is missing from the repository",
                hint="a partial clone? fetch everything: git fetch --refetch --no-filter",
            )
        return content


def patch_digests(git_directory: Path, pairs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Hex SHA-256 of the patch between each pair of trees (ids), read as a stream.

    A pair is missing from the answer where one of its trees, or an object below them, is missing.
    """
    wanted = {f"{old} {new}\n".encode(): (old, new) for old, new in pairs}
    found: dict[tuple[str, str], str] = {}
    while wanted:
        digests, unreadable = _digests(git_directory, wanted)
        found.update({wanted[head]: digest for head, digest in digests.items()})
        if unreadable is None:
            break
        order = list(wanted)  # git stops at an object that it cannot read: go on behind that pair
        wanted = {head: wanted[head] for head in order[order.index(unreadable) + 1 :]}
    return found


def _digests(git_directory: Path, heads: Collection[bytes]) -> tuple[dict[bytes, str], bytes | None]:
    """The patches' digests by the line that names their pair, and the pair at which git stopped, if it did.

    git-diff-tree(1), --stdin. Git names each pair before its patch, and leaves out a pair without its trees. No
    line of a patch looks like such a line: lines of content begin with a space, a sign or a backslash, and
    those of binary content hold no space.
    """
    found: dict[bytes, str] = {}
    head, digest = b"", hashlib.sha256()
    with tempfile.TemporaryFile() as request, tempfile.TemporaryFile() as errors:
        request.write(b"".join(heads))
        request.seek(0)
        with subprocess.Popen(
            ["git", *SAFE_OPTIONS, "diff-tree", "--stdin", *PATCH_OPTIONS],
            stdin=request,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd="/",
            env=git_environment(git_directory),
        ) as process:
            assert process.stdout is not None  # noqa: S101 - asked for a pipe
            for line in process.stdout:
                if line not in heads:
                    digest.update(line)
                    continue
                if head:
                    found[head] = digest.hexdigest()
                head, digest = line, hashlib.sha256()
        if process.returncode != 0:
            return found, head or next(iter(heads))
        if head:
            found[head] = digest.hexdigest()
        return found, None

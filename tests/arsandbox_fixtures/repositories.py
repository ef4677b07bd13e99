"""Throw-away git repositories of unit tests."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import pytest

GIT_ENVIRONMENT = {
    "PATH": os.environ.get("PATH", os.defpath),
    "HOME": "/nonexistent",
    "LC_ALL": "C",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_AUTHOR_DATE": "2024-01-02T03:04:05Z",
    "GIT_COMMITTER_DATE": "2024-01-02T03:04:05Z",
}


class GitRepository:
    """A git repository made with the git program alone, independent of the code under test."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def git(self, *arguments: str, stdin: bytes = b"", check: bool = True) -> str:
        """What git prints, without the settings of whoever runs the tests."""
        done = subprocess.run(
            ["git", "-c", "user.name=tester", "-c", "user.email=tester@localhost", *arguments],
            cwd=self.path,
            env=GIT_ENVIRONMENT,
            input=stdin,
            capture_output=True,
            check=False,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"git {arguments}: {done.stderr.decode(errors='replace')}")
        return os.fsdecode(done.stdout).strip("\n")

    def write(self, files: Mapping[str, bytes | str]) -> None:
        """Write files below the repository."""
        for name, content in files.items():
            target = self.path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content.encode() if isinstance(content, str) else content)

    def commit(self, message: str = "change") -> str:
        """Commit all that is there; the commit."""
        self.git("add", "-A", "--force")
        self.git("commit", "-q", "--allow-empty", "--no-verify", "-m", message)
        return self.git("rev-parse", "HEAD")


class MakeRepository(Protocol):
    """The fixture `make_repo`."""

    def __call__(
        self, files: Mapping[str, bytes | str] | None = None, *, name: str = "repo", object_format: str = "sha1"
    ) -> GitRepository:
        """A repository below the test's directory; `files` are its one commit (none: unborn)."""


@pytest.fixture
def make_repo(tmp_path: Path) -> MakeRepository:
    """`make_repo(files, name="repo", ...)`: a repository whose one commit holds `files` (none: unborn)."""

    def make(
        files: Mapping[str, bytes | str] | None = None, *, name: str = "repo", object_format: str = "sha1"
    ) -> GitRepository:
        place = tmp_path / name
        place.mkdir(parents=True)
        repo = GitRepository(place)
        repo.git("init", "-q", "-b", "main", "--template=", f"--object-format={object_format}")
        if files:
            repo.write(files)
            repo.commit("base")
        return repo

    return make

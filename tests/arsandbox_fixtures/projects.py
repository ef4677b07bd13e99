"""Git repositories that hold the task, with the commands of arsandbox on them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytest
from docker.models.containers import Container

from arsandbox_fixtures.command_line import Done, Running, arsandbox, start
from arsandbox_fixtures.docker_engine import containers
from arsandbox_fixtures.home import session_home
from arsandbox_fixtures.image import image_digest
from arsandbox_fixtures.task import CONFIG, EVALUATE, MARKER, TRAIN, TRUTH
from arsandbox_fixtures.waiting import wait_for


@dataclass
class Project:
    """A small git repository with a training task that takes no time."""

    path: Path
    home: Path
    env: dict[str, str] = field(default_factory=dict)
    tag: str = "t"

    @classmethod
    def create(cls, path: Path, files: Mapping[str, str] | None = None, *, home: Path | None = None) -> Project:
        """A repository at `path` whose one commit holds the task; `files` replace or complete its files."""
        path.mkdir(parents=True)
        home = home or session_home()
        project = cls(path, home, {"ARSANDBOX_HOME": str(home)})
        project.git("init", "-q", "-b", "main")
        project.git("config", "user.name", "someone")
        project.git("config", "user.email", "someone@example.org")
        content = {
            "arsandbox.toml": CONFIG,
            "train.py": TRAIN,
            "evaluate.py": EVALUATE,
            "heldout/truth.txt": f"{TRUTH}\n{MARKER}\n",
            "assets/a.txt": "a\n",
            "assets/deep/b.txt": "b\n",
            "README.md": "a task\n",
        }
        project.commit({**content, **(files or {})}, "base")
        return project

    def git(self, *arguments: str, check: bool = True, cwd: Path | None = None, stdin: str | None = None) -> str:
        """What git prints, without the settings of whoever runs the tests."""
        done = subprocess.run(
            ["git", *arguments], cwd=cwd or self.path, input=stdin, text=True, capture_output=True, check=False,
            env={**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"},
        )  # fmt: skip
        assert done.returncode == 0 or not check, f"git {arguments}: {done.stderr}"
        return done.stdout.strip()

    def write(self, files: Mapping[str, str]) -> None:
        """Write files below the repository."""
        for name, text in files.items():
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            (self.path / name).write_text(text)

    def commit(self, files: Mapping[str, str], message: str = "change") -> str:
        """Write and commit; the commit."""
        self.write(files)
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", message)
        return self.git("rev-parse", "HEAD")

    def patch(self, train: str, name: str = "edit.patch") -> Path:
        """A patch file (outside the repository) that makes train.py read `train`."""
        old = subprocess.run(
            ["git", "show", "HEAD:train.py"], cwd=self.path, capture_output=True, text=True, check=True
        ).stdout
        place = Path(tempfile.mkdtemp(prefix="diff-", dir=self.path.parent))
        for side, text in (("a", old), ("b", train)):
            (place / side).mkdir()
            (place / side / "train.py").write_text(text)
        done = subprocess.run(
            ["git", "diff", "--no-index", "--no-prefix", "a/train.py", "b/train.py"],
            cwd=place, capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == 1, done.stderr
        (place / name).write_bytes(done.stdout)
        return place / name

    def _arguments(self, arguments: Sequence[str | Path]) -> list[str | Path]:
        return ["run", "--repo", self.path, "--tag", self.tag, *arguments]

    def run(self, *arguments: str | Path, **options: Any) -> Done:
        """`arsandbox run` on this repository."""
        return arsandbox(*self._arguments(arguments), env=self.env, **options)

    def start(self, *arguments: str | Path, **options: Any) -> Running:
        """`arsandbox run` on this repository, while it runs."""
        return start(*self._arguments(arguments), env=self.env, **options)

    def run_train(self, train: str, *arguments: str | Path) -> Done:
        """Run `train` as the candidate's train.py, with --json."""
        return self.run("--patch", self.patch(train), "--json", *arguments)

    def cli(self, command: str, *arguments: str | Path, **options: Any) -> Done:
        """Another command on this repository."""
        return arsandbox(command, *arguments, "--repo", self.path, env=self.env, **options)

    def history(self) -> list[dict[str, Any]]:
        """All records, oldest first."""
        done = self.cli("history", "--jsonl")
        assert done.code == 0, done
        return [json.loads(line) for line in reversed(done.out.splitlines())]

    def branches(self) -> dict[str, str]:
        """The commit of each branch."""
        rows = self.git("for-each-ref", "--format=%(refname:short) %(objectname)", "refs/heads").splitlines()
        return dict(row.split(" ") for row in rows)

    def verify(self) -> None:
        """The ledger is whole, says `arsandbox verify`."""
        done = self.cli("verify")
        assert done.code == 0, done

    def state(self) -> Path:
        """This repository's state directory."""
        # By the end of its name, which is the path's digest: other repositories of the session may be called alike.
        digest = hashlib.sha256(os.fsencode((self.path / ".git").resolve())).hexdigest()[:12]
        (found,) = (self.home / "repos").glob(f"*-{digest}")
        return found

    def experiment_files(self, identity: str) -> Path:
        """The directory of one experiment."""
        return self.state() / "experiments" / identity

    def wait_for_training(self, *, seconds: float = 60) -> Container:
        """A running container of this home that is in the training stage."""

        def running() -> Container | None:
            found = (c for c in containers(self.home) if c.status == "running" and "-train-" in (c.name or ""))
            return next(found, None)

        return wait_for(running, seconds=seconds, what="the start of the training")


class MakeProject(Protocol):
    """The fixture `project`."""

    def __call__(self, files: Mapping[str, str] | None = None, *, home: Path | None = None) -> Project:
        """A repository with the task, where `files` replace or complete its own; in the session's home by default."""


@pytest.fixture
def project(home: Path, tmp_path: Path) -> MakeProject:
    """Makes git repositories with a training task that takes no time."""
    count = iter(range(1000))
    session = home

    def create(files: Mapping[str, str] | None = None, *, home: Path | None = None) -> Project:
        image_digest()  # another test module may have removed it
        name = f"{tmp_path.name.replace('_', '-')}-{next(count)}"
        return Project.create(tmp_path / name, files, home=home or session)

    return create

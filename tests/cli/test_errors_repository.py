"""Repositories that cannot be used and edits that may not pass: one clear line, a fix, the right exit code."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arsandbox_fixtures.command_line import arsandbox
from arsandbox_fixtures.complaints import check
from arsandbox_fixtures.leftovers import leftovers
from arsandbox_fixtures.task import CONFIG, answering

pytestmark = [pytest.mark.engine, pytest.mark.timeout(120)]


def test_no_git_repository(home: Path, tmp_path: Path) -> None:
    for command in (["run"], ["history"], ["init"]):
        done = arsandbox(*command, "--repo", tmp_path)
        check(done, 2, "not in a git repository", fix="git init")


def test_no_git_program(home: Path, tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    for command in (["run"], ["history"], ["init"], ["loop", "--propose", "sweep"]):
        done = arsandbox(*command, "--repo", tmp_path, env={"PATH": str(tmp_path)})
        check(done, 4, "git is not installed", fix="apt-get install git")


def test_no_such_directory(home: Path, tmp_path: Path) -> None:
    check(arsandbox("run", "--repo", tmp_path / "missing"), 2, "no such directory", fix=None)


def test_a_repo_that_is_a_file(home: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    check(arsandbox("run", "--repo", tmp_path / "file"), 2, "file", fix=None)


def test_an_unborn_head(home: Path, tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    check(arsandbox("run", "--repo", tmp_path), 2, "HEAD has no commit yet", fix="git commit")


def test_a_bare_repository(project: Any, tmp_path: Path) -> None:
    task = project()
    bare = tmp_path / "bare.git"
    subprocess.run(["git", "clone", "-q", "--bare", str(task.path), str(bare)], check=True)
    check(arsandbox("run", "--repo", bare), 2, "bare", fix="clone")


def test_a_damaged_repository(project: Any) -> None:
    task = project()
    shutil.rmtree(task.path / ".git" / "objects")
    assert task.run().code in (2, 5)
    task = project()
    (task.path / ".git" / "HEAD").write_text("garbage\n")
    assert task.run().code in (2, 5)
    task = project()
    (task.path / ".git" / "config").write_text("[core\nnonsense")
    done = task.run()
    assert done.code in (2, 5), done
    assert len([line for line in done.err.splitlines() if line.startswith("arsandbox: ")]) == 1


def test_a_submodule_in_the_base(project: Any) -> None:
    task, other = project(), project()
    task.git("-c", "protocol.file.allow=always", "submodule", "add", "-q", str(other.path), "vendored")
    task.git("commit", "-q", "-m", "with a submodule")
    done = task.run()
    assert done.code in (2, 3, 5), done
    check(done, done.code, "vendored", "submodule", fix="vendor")
    assert leftovers() == []


def test_an_edit_outside_editable_is_rejected_and_recorded(project: Any) -> None:
    task = project()
    task.write({"README.md": "other words\n"})
    done = task.run("--json")
    assert done.code == 3, done
    assert (done.record["verdict"], done.record["stages"]) == ("rejected", [])
    assert "README.md" in done.record["reason"] and "train.py" in done.record["reason"]
    assert task.history() == [done.record]
    assert task.cli("show", done.record["id"], "--json").record == done.record


@pytest.mark.parametrize("path", ["evaluate.py", "arsandbox.toml"])
def test_an_edit_of_a_protected_file_is_rejected(project: Any, path: str) -> None:
    task = project()
    task.write({path: (task.path / path).read_text() + "\n# mine\n", "train.py": answering(5)})
    done = task.run()
    assert done.code == 3, done
    assert path in done.err and "protected" in done.err
    assert task.history()[0]["verdict"] == "rejected"


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("a symlink", lambda p: ((p / "train.py").unlink(), (p / "train.py").symlink_to("/etc/passwd"))),
        ("a new file next to it", lambda p: subprocess.run(
            "echo x > sitecustomize.py; git add -N sitecustomize.py", shell=True, cwd=p, check=True)),
        ("a deleted file", lambda p: (p / "README.md").unlink()),
    ],
)  # fmt: skip
def test_other_edits_that_may_not_pass(project: Any, name: str, change: Callable[[Path], object]) -> None:
    task = project({"arsandbox.toml": CONFIG.replace('["train.py"]', '["train.py", "*.py"]')})
    change(task.path)
    done = task.run("--json")
    assert (done.code, done.record["verdict"]) == (3, "rejected"), (name, done)

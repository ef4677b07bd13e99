"""Patches and revisions that cannot be used: one clear line, a fix, the right exit code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from arsandbox_fixtures.complaints import check
from arsandbox_fixtures.task import answering

pytestmark = [pytest.mark.engine, pytest.mark.timeout(120)]


# --- patches ----------------------------------------------------------------------------------------------


def test_an_empty_patch(project: Any, tmp_path: Path) -> None:
    task = project()
    for text in ("", "\n \n"):
        (tmp_path / "empty.patch").write_text(text)
        check(task.run("--patch", tmp_path / "empty.patch"), 2, "empty.patch", "is empty", fix="git diff")
    assert task.history() == []


def test_a_missing_patch(project: Any, tmp_path: Path) -> None:
    done = project().run("--patch", tmp_path / "no.patch")
    check(done, 2, "no.patch", "No such file", fix=None)


def test_a_patch_that_is_a_directory(project: Any, tmp_path: Path) -> None:
    check(project().run("--patch", tmp_path), 2, str(tmp_path), fix=None)


def test_a_patch_that_does_not_apply(project: Any) -> None:
    task = project()
    edit = task.patch(answering(5))
    task.commit({"train.py": "print('something else')\n"})
    check(task.run("--patch", edit), 2, "edit.patch", "does not apply", "train.py", fix="against the base")


def test_a_patch_that_is_no_patch(project: Any, tmp_path: Path) -> None:
    (tmp_path / "x.patch").write_bytes(os.urandom(5000))
    check(project().run("--patch", tmp_path / "x.patch"), 2, "x.patch", fix="git diff")


def test_patch_and_commit_exclude_each_other(project: Any, tmp_path: Path) -> None:
    check(project().run("--patch", tmp_path / "x", "--commit", "HEAD"), 2, "--patch", "--commit")


def test_an_unknown_revision(project: Any) -> None:
    check(project().run("--commit", "nonsense"), 2, "nonsense", fix="git log")
    check(project().run("--base", "--upload-pack=x"), 2, "--upload-pack=x", fix=None)

"""What records of whole experiments say, and a repository whose baseline is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from arsandbox_fixtures.projects import Project


def codes(record: dict[str, Any]) -> list[str]:
    """The codes of the findings."""
    return [finding["code"] for finding in record["findings"]]


def changed(record: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """What the change set says of each path."""
    return {row["path"]: (row["change"], row["kind"]) for row in record["change_set"]["paths"]}


def train_log(project: Project, record: dict[str, Any]) -> str:
    """What training printed."""
    return (project.experiment_files(record["id"]) / "train.log").read_text(errors="replace")


@pytest.fixture(scope="module")
def shared_task(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The task with its baseline, for a module's tests."""
    task = Project.create(tmp_path_factory.mktemp("shared") / "shared")
    assert task.run("--json").record["verdict"] == "baseline"
    return task


@pytest.fixture
def ready(shared_task: Project) -> Project:
    """A repository whose baseline is measured, with a promotion branch of this test's own."""
    shared_task.tag = f"t{len(shared_task.history())}"
    return shared_task

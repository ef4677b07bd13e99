"""Reruns through the command line."""

from __future__ import annotations

from typing import Any

from arsandbox_fixtures.command_line import Done
from arsandbox_fixtures.projects import Project


def rerun(task: Project, *arguments: str, **options: Any) -> Done:
    """What `arsandbox rerun` says."""
    return task.cli("rerun", *arguments, "--json", timeout=240, **options)


def grades(record: dict[str, Any]) -> list[str]:
    """The grades that the rerun reached."""
    return list(record["rerun"]["reached"])

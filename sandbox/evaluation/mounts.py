"""What an evaluation's sandboxes see of ours: the box package, mounted read-only beside their channel."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

# Where each sandbox of an evaluation finds its channel, the code that speaks it, and its task.
TARGET = "/run/arsandbox"
LIBRARY = f"{TARGET}/lib"


def furnish(directory: Path, task: Mapping[str, Any] | None = None) -> None:
    """Put the box package, and for the scorer its task, into a directory that will be mounted read-only."""
    library = directory / "lib" / "arsandbox_box"
    library.mkdir(parents=True)
    for place in (directory, directory / "lib", library):
        place.chmod(0o755)
    for entry in (files("arsandbox") / "sandbox" / "evaluation" / "box").iterdir():
        if entry.name.endswith(".py"):
            (library / entry.name).write_bytes(entry.read_bytes())
            (library / entry.name).chmod(0o644)
    if task is not None:
        (directory / "task.json").write_text(json.dumps(task))
        (directory / "task.json").chmod(0o644)


def python_path(environment: Mapping[str, str]) -> str:
    """PYTHONPATH with the box package first, then what the project's own `environment` says."""
    return ":".join(filter(None, (LIBRARY, environment.get("PYTHONPATH", ""))))

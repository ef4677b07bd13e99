"""What this tool tells its pytest plugin: which of the collected tests to run, and where to write their results."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

# Tests that bound wall-clock time are marked `alone`; those that are not may run beside others.
Part = Literal["all", "beside", "alone"]
OPTION = "--arsandbox-orders"


@dataclass(frozen=True)
class Orders:
    """The orders for one pytest process and its workers."""

    report: str
    groups: tuple[str, ...]
    part: Part = "all"
    prefix: str = ""  # comes before each test's name in the report
    passed: tuple[str, ...] = ()  # without the prefix; these are not run again

    def command(self, python: str | Path, root: Path, place: Path) -> list[str | Path]:
        """The pytest that follows these orders, which are put into a file in the directory `place`."""
        path = place / "orders.json"
        path.write_text(json.dumps(asdict(self)))
        program = root / "scripts" / "run_pytest.py"
        return [python, program, str(os.getpid()), f"{OPTION}={path}", f"--rootdir={root}"]


def read(path: str) -> Orders:
    """The orders in a file."""
    values = json.loads(Path(path).read_text())
    return Orders(**values | {"groups": tuple(values["groups"]), "passed": tuple(values["passed"])})

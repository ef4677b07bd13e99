"""What `scripts/test --list` prints: what the default run and each group hold and need, with numbers of tests."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import packages, pythons, results
from .groups import DEFAULT, DEFAULT_RUN, GROUPS, NAMES, Group
from .orders import Orders
from .processes import Processes


def collect(root: Path, processes: Processes, arguments: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The report's lines on every test below tests/, none of which is run."""
    with tempfile.TemporaryDirectory(prefix="arsandbox-test-") as place, tempfile.TemporaryFile() as output:
        report = Path(place) / "report.jsonl"
        command = Orders(str(report), (DEFAULT, *NAMES)).command(sys.executable, root, Path(place))
        processes.run([*command, "--collect-only", "-q", *arguments], cwd=root, output=output)
        return results.lines(report)


def count(lines: Sequence[dict[str, Any]]) -> dict[str, int]:
    """How many tests belong to each group, to the default run, and (`alone`) to its second part."""
    counts = dict.fromkeys((DEFAULT, *NAMES, "alone"), 0)
    for line in lines:
        groups = line["groups"]
        for name in groups:
            counts[name] += 1
        counts["alone"] += bool(line.get("alone")) and DEFAULT in groups
    return counts


def on_one_python(lines: Sequence[dict[str, Any]]) -> int:
    """How many tests run on each Python."""
    folders = tuple(f"{folder}/" for folder in pythons.FOLDERS)
    return sum(str(line["collected"]).startswith(folders) and line["groups"] == [DEFAULT] for line in lines)


def described(root: Path, lines: Sequence[dict[str, Any]]) -> list[str]:
    """The whole list, as text."""
    found = [line for line in lines if "collected" in line]
    counts, text = count(found), []
    for group in (DEFAULT_RUN, *GROUPS):
        text += _row(group, _number(group, root, counts, found))
    unread = [str(line["test"]) for line in lines if "test" in line and line["outcome"] == "failed"]
    return text + [f"not counted, since it cannot be read here: {name}" for name in unread]


def _row(group: Group, number: str) -> list[str]:
    command = "scripts/test" if group is DEFAULT_RUN else f"scripts/test --all {group.name}"
    return [f"{group.name}: {number} ({command})", f"    {group.holds}", f"    needs: {group.needs}"]


def _number(group: Group, root: Path, counts: dict[str, int], found: Sequence[dict[str, Any]]) -> str:
    if group is DEFAULT_RUN:
        return f"{counts[DEFAULT]} tests, {counts['alone']} of them alone"
    if group.on_pythons:
        named = pythons.versions(root)
        checks = 1 + len(packages.ENGINES)
        return f"{on_one_python(found)} tests on each of {', '.join(named)}, and {checks} checks of the packages"
    return f"{counts[group.name]} tests"

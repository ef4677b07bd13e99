"""What is said at the end of a run, and the line that it adds to a log."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from .results import Result

SLOWEST = 10


@dataclass(frozen=True)
class Ran:
    """One run of the selection."""

    began: datetime
    seconds: float
    seed: int
    results: tuple[Result, ...]
    status: int

    def named(self, outcome: str) -> list[str]:
        """The tests with that end."""
        return [result.test for result in self.results if result.outcome == outcome]


def by_folder(results: Sequence[Result]) -> list[str]:
    """A line for each top folder of tests/, the longest first."""
    seconds: dict[str, list[float]] = {}
    for result in results:
        seconds.setdefault(result.folder, []).append(result.seconds)
    rows = sorted(seconds.items(), key=lambda row: -sum(row[1]))
    return [f"{sum(times):8.1f} s  {folder} ({len(times)} tests)" for folder, times in rows]


def slowest(results: Sequence[Result]) -> list[str]:
    """A line for each of the slowest tests."""
    rows = sorted(results, key=lambda result: -result.seconds)[:SLOWEST]
    return [f"{row.seconds:8.1f} s  {row.test}" for row in rows]


def counts(ran: Ran) -> str:
    """How many tests ended how."""
    return ", ".join(f"{len(ran.named(outcome))} {outcome}" for outcome in ("passed", "failed", "skipped"))


def verdict(runs: Sequence[Ran], status: int) -> str:
    """The last line."""
    good = sum(run.status == 0 for run in runs)
    several = f" in {good} of {len(runs)} runs" if len(runs) > 1 else ""
    if status == 0:
        return f"scripts/test: all passed{several}"
    return f"scripts/test: NOT all passed (exit status {status}){f': all passed{several}' if several else ''}"


def log_line(ran: Ran, *, selection: str, busy: int) -> str:
    """A run in one line, of words that a shell could split."""
    values = {
        "time": ran.began.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "seed": str(ran.seed),
        "selection": selection,
        "busy": str(busy),
        "seconds": f"{ran.seconds:.1f}",
        "passed": str(len(ran.named("passed"))),
        "failed": str(len(ran.named("failed"))),
        "skipped": str(len(ran.named("skipped"))),
        "status": str(ran.status),
        "failures": " ".join(ran.named("failed")),
    }
    return " ".join(f"{name}={shlex.quote(value)}" for name, value in values.items())

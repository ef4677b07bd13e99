"""Pure: when a loop has done enough."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from arsandbox.sandbox.models import Verdict
from arsandbox.sandbox.record import Record

STOP_FILE = "STOP"
_WORKED = {Verdict.KEEP, Verdict.DISCARD, Verdict.PENDING, Verdict.BASELINE}


@dataclass(frozen=True)
class Bounds:
    """Each bound ends the loop when it is reached; None where there is none.

    `count` rounds in all, resumed ones included; `seconds` of this call; `failures` rounds in a row that gave
    no value to judge; `plateau` rounds in a row without a promotion; `gpu_seconds` of stages times GPUs.
    """

    count: int | None = None
    seconds: float | None = None
    failures: int | None = None
    plateau: int | None = None
    gpu_seconds: float | None = None

    def all_begun(self, begun: int) -> bool:
        """Whether as many rounds were begun as are asked for; those that have begun are played to their end."""
        return self.count is not None and begun >= self.count

    def reached(self, rounds: Sequence[Record], *, elapsed_s: float, gpu_s: float) -> str | None:
        """Why no further round begins, in words, or None. `rounds` are the finished ones' records, oldest first."""
        if self.seconds is not None and elapsed_s >= self.seconds:
            return f"the time is over ({elapsed_s:.0f} s)"
        if self.gpu_seconds is not None and gpu_s >= self.gpu_seconds:
            return f"the GPU time is used up ({gpu_s:.0f} s)"
        failed = _trailing(rounds, lambda record: record.verdict not in _WORKED)
        if self.failures is not None and failed >= self.failures:
            return f"{failed} rounds in a row failed; the last: {rounds[-1].reason}"
        flat = _trailing(rounds, lambda record: record.promotion is None)
        if self.plateau is not None and flat >= self.plateau:
            return f"{flat} rounds in a row promoted nothing"
        return None


def gpu_seconds(records: Sequence[Record]) -> float:
    """Seconds of training and evaluation times the GPUs that each had, over all runs, the confirming ones included."""
    stages = [stage for record in records for stage in record.stages]
    return sum(stage.wall_s * len(stage.usage.gpu.get("devices", ())) for stage in stages)


def stop_file(worktree: Path) -> Path:
    """The file whose existence ends the loop after the rounds under way; no sandbox can make it."""
    return worktree / STOP_FILE


def _trailing(rounds: Sequence[Record], matches: Callable[[Record], bool]) -> int:
    number = 0
    for record in reversed(rounds):
        if not matches(record):
            break
        number += 1
    return number

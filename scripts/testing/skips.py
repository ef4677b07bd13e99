"""Every reason that a test here may give for skipping itself, and which of them CI accepts.

A test of this tool looks through tests/ for reasons that are in neither table.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from .results import Result

# Reasons that lie in the machine's kernel, processor, release or user: no installation would change them.
ALLOWED = {
    r"declared: memory is best effort, .*": "without a cgroup of its own the embedded engine promises less",
    r"we are that user: .*": "the run is an ordinary user's, so the test without a change of user says it",
    r"only root can (start a dockerd|make a file that belongs to root)": "the run is an ordinary user's",
    r"mounting( an overlay)? needs root": "the run is an ordinary user's",
    r"the engine's storage cannot be written by this user": "the run is an ordinary user's",
    r"dockerd \d+ has no CDI: 25 or later has": "the distribution's Docker is older; the hook is tested instead",
    r"x32 is of x86_64": "another processor has no such calls",
    r"bwrap comes with a package here": "the extra `embedded` is installed: its absence cannot be played",
}
# Reasons that an installation would take away: what is missing, then how to have it.
MISSING = {
    r"docker-registry is not installed: .*": "docker-registry (scripts/test takes it from Debian's package)",
    r"there is no dockerd to start": "dockerd (apt-get install docker.io)",
    r"the engine has no runsc .*": "runsc (apt-get install runsc; the Docker daemon must know it)",
    r"there is no C compiler for the stand-in libnvidia-ml\.so\.1": "gcc (apt-get install gcc libc6-dev)",
    r"dpkg compares its versions": "dpkg",
    r"aider is not installed: .*": "aider (pip install aider-chat)",
}


@dataclass(frozen=True)
class Judged:
    """The lines to print about skipped tests, and whether they make the run fail."""

    lines: tuple[str, ...]
    failed: bool


def missing(reason: str) -> str | None:
    """The tool that a reason speaks of."""
    return next((tool for pattern, tool in MISSING.items() if re.fullmatch(pattern, reason)), None)


def allowed(reason: str) -> bool:
    """Whether CI accepts a reason."""
    return any(re.fullmatch(pattern, reason) for pattern in ALLOWED)


def judge(results: Iterable[Result], *, ci: bool) -> Judged:
    """One line for each missing tool and for each reason that is in no table. Under CI any of them is a failure."""
    counts: dict[str, int] = {}
    for result in results:
        if result.outcome == "skipped" and not allowed(result.reason):
            tool = missing(result.reason)
            why = (
                f"there is no {tool}" if tool else f'"{result.reason}" is no reason that scripts/testing/skips.py knows'
            )
            counts[why] = counts.get(why, 0) + 1
    word = "CI=true, and skipped" if ci else "left out"
    lines = tuple(f"{word}: {number} test{'s'[: number > 1]}, since {why}" for why, number in counts.items())
    return Judged(lines, ci and bool(lines))

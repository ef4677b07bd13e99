"""What became of each test, as lines of JSON that are written when it ends, and the files that keep them."""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Outcome = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True)
class Result:
    """One test's end. `seconds` counts its fixtures, too; `reason` says why it was skipped."""

    test: str
    outcome: Outcome
    seconds: float = 0.0
    reason: str = ""

    @property
    def folder(self) -> str:
        """The top folder of tests/ that it is in, after the Python that it ran on where that was named."""
        before, found, path = self.test.partition("tests/")
        if not found:
            return self.test.partition("/")[0]
        top = path.partition("::")[0].split("/")
        return f"{before}tests/{top[0]}" if len(top) > 1 else f"{before}tests"


def append(path: Path, value: dict[str, Any]) -> None:
    """Add a line to a file that several processes may write."""
    with path.open("a") as file:
        file.write(json.dumps(value) + "\n")


def add(path: Path, result: Result) -> None:
    """Note a result."""
    append(path, asdict(result))


def lines(path: Path, start: int = 0) -> list[dict[str, Any]]:
    """The file's lines from byte `start` on. One that a killed process left half written is left out."""
    found = []
    if path.exists():
        with path.open("rb") as file:
            file.seek(start)
            for line in file:
                try:
                    found.append(json.loads(line))
                except ValueError:
                    continue
    return found


def read(path: Path, start: int = 0) -> list[Result]:
    """The results among the file's lines; of several of one test, the last."""
    found = {line["test"]: Result(**line) for line in lines(path, start) if "test" in line}
    return list(found.values())


def clean_commit(root: Path) -> str | None:
    """The commit that the checkout holds; None where files differ from it, or where there is no git."""
    try:
        changed = subprocess.run(
            ["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=True
        ).stdout
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return None if changed else commit.stdout.strip()


class ResultFile:
    """A group's results. A later run at the same commit goes on from them: what passed is not run again.

    The first line names the commit (null: the checkout differed from it, so nothing goes on from here) and the seed
    that was asked for (null: each run draws its own); the others are results.
    """

    def __init__(self, root: Path, name: str) -> None:
        self.path = root / ".venv" / "test-results" / f"{name}.jsonl"
        self._root = root
        self._commit: str | None = None
        self._seed: int | None = None
        self.start = 0

    def begin(self, seed: int | None, *, fresh: bool) -> list[Result]:
        """Start anew, or go on where commit and asked seed are those of the file: the results that passed."""
        self._commit, self._seed = clean_commit(self._root), seed
        head = {"commit": self._commit, "seed": seed}
        if fresh or self._commit is None or next(iter(lines(self.path)), None) != head:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(head) + "\n")
        self._end_line()
        self.start = self.path.stat().st_size
        return [result for result in read(self.path) if result.outcome == "passed"]

    def end(self) -> None:
        """Give the results up where the checkout has changed meanwhile: nobody knows what passed."""
        if clean_commit(self._root) != self._commit:
            old = self.path.read_bytes().partition(b"\n")[2]
            self.path.write_bytes(json.dumps({"commit": None, "seed": self._seed}).encode() + b"\n" + old)

    def _end_line(self) -> None:
        with self.path.open("rb+") as file:
            if not file.read().endswith(b"\n"):
                file.write(b"\n")

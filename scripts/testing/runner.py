"""Runs of the selection: each section's tests in pytest, with busy loops beside them and results that are kept."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import SystemRandom

from . import pythons, results, skips
from .groups import DEFAULT, LIMIT_S, Group, named
from .options import Options
from .orders import Orders, Part
from .processes import Processes, StoppedError, TimeIsUpError, busy
from .results import Result, ResultFile
from .summary import Ran

SEED = "ARSANDBOX_TEST_SEED"
NO_TESTS = 5  # pytest's exit status
LINTERS = (("ruff", "check"), ("ruff", "format", "--check"), ("mypy",), ("lint-imports",))


def say(text: str) -> None:
    """One line of this tool's own, at once."""
    print(f"scripts/test: {text}", flush=True)


@dataclass(frozen=True)
class Section:
    """One group, or the default run, while it runs."""

    group: Group
    report: Path
    seed: int
    passed: tuple[str, ...]
    end: float | None  # of time.monotonic()

    def left_s(self) -> float | None:
        """Seconds until its time is up; TimeIsUpError after that."""
        if self.end is None:
            return None
        if (left := self.end - time.monotonic()) <= 0:
            raise TimeIsUpError
        return left


class Runner:
    """Runs what the options ask for. `runs` has what is known so far, also after a signal."""

    def __init__(self, root: Path, options: Options, processes: Processes) -> None:
        self.root = root
        self.options = options
        self.processes = processes
        self.ci = os.environ.get("CI") == "true"
        self.runs: list[Ran] = []
        self._found: list[Result] = []
        self._left_out: dict[str, int] = {}
        self._before = 0

    def lint(self) -> int:
        """The linters up to the first that fails: its exit status."""
        for step in LINTERS:
            say(" ".join(step))
            program = self.root / ".venv" / "bin" / step[0]
            status = self.processes.run([program, *step[1:]], cwd=self.root)
            if status:
                say(f"{step[0]} failed")
                return status
        return 0

    def run_all(self) -> int:
        """The whole selection, as often as was asked for: the first exit status that is not 0."""
        status = 0
        for number in range(1, self.options.times + 1):
            if self.options.times > 1:
                say(f"run {number} of {self.options.times}")
            code = self._once()
            status = status or code
        return status

    def pytest(
        self, section: Section, selection: Sequence[str], *, python: Path | None = None, prefix: str = ""
    ) -> int:
        """The section's tests of the selection: beside each other, then those that are alone; or all in one process."""
        parts: tuple[Part, ...] = ("all",) if self.options.in_order else ("beside", "alone")
        status = 0
        for part in parts:
            code = self._part(section, selection, part, python or Path(sys.executable), prefix)
            status = status or code
        return status

    def _once(self) -> int:
        seed = SystemRandom().randrange(2**32) if self.options.seed is None else self.options.seed
        say(f"{self.options.described}, seed {seed}{f', {n} busy loops' if (n := self.options.busy) else ''}")
        began, clock, status = datetime.now(UTC), time.monotonic(), 1
        self._found, self._left_out, self._before = [], {}, 0
        try:
            with busy(self.options.busy):
                status = self._sections(seed)
            status = self._judged(status)
        except StoppedError as error:
            status = 128 + error.number
            raise
        finally:
            self.runs.append(Ran(began, time.monotonic() - clock, seed, tuple(self._found), status))
        return status

    def _sections(self, seed: int) -> int:
        status = 0
        for name in self.options.sections:
            code = self._section(named(name), seed)
            status = status or code
        return status

    def _section(self, group: Group, seed: int) -> int:
        with self._reporting(group, seed) as section:
            try:
                if group.on_pythons:
                    return pythons.run(self, section)
                return self.pytest(section, self.options.selection)
            except TimeIsUpError:
                say(f"group {group.name}: not finished within {LIMIT_S / 60:g} minutes: run it again to go on")
                return 1

    @contextmanager
    def _reporting(self, group: Group, seed: int) -> Iterator[Section]:
        """Where results go meanwhile; afterwards they are among those found, whatever happened."""
        end = None if group.name == DEFAULT else time.monotonic() + LIMIT_S
        with tempfile.TemporaryDirectory(prefix="arsandbox-test-") as place:
            file = ResultFile(self.root, group.name) if self.options.keeps_results else None
            passed: list[Result] = []
            if file is not None:
                passed = file.begin(self.options.seed, fresh=self.options.fresh)
                say(f"group {group.name}: {len(passed)} tests have passed at this commit, as {file.path} says")
                self._before += len(passed)
            report = Path(place) / "report.jsonl" if file is None else file.path
            start = 0 if file is None else file.start
            try:
                yield Section(group, report, seed, tuple(result.test for result in passed), end)
            finally:
                self._found += results.read(report, start)
                self._count_left_out(report, start)
                if file is not None:
                    file.end()

    def _part(self, section: Section, selection: Sequence[str], part: Part, python: Path, prefix: str) -> int:
        groups = self.options.groups or ((DEFAULT,) if section.group.on_pythons else (section.group.name,))
        passed = tuple(test.removeprefix(prefix) for test in section.passed if test.startswith(prefix))
        with tempfile.TemporaryDirectory(prefix="arsandbox-test-") as place:
            told = Orders(str(section.report), groups, part, prefix, passed)
            command = told.command(python, self.root, Path(place))
            if part == "beside":
                # Tests mostly wait for the engine, so more of them than processors run at a time. The order of the
                # modules is that of tests/arsandbox_fixtures/order.py, which xdist would change.
                command += ["-n", str((os.cpu_count() or 1) + 2), "--dist", section.group.dist]
                command += ["--no-loadscope-reorder"]
            command += selection
            command += [] if self.options.word is None else ["-k", self.options.word]
            status = self.processes.run(
                [*command, *self.options.extra],
                cwd=self.root, env=_environment(section), limit_s=section.left_s(),
            )  # fmt: skip
        for name in self.processes.end_leftovers():
            say(f"the tests left a process, which is ended: {name}")
        return 0 if status == NO_TESTS else status

    def _count_left_out(self, report: Path, start: int) -> None:
        for line in results.lines(report, start):
            for name, number in line.get("left_out", {}).items():
                self._left_out[name] = max(number, self._left_out.get(name, 0))

    def _judged(self, status: int) -> int:
        """The run's exit status, once skipped tests and what was not run are counted; says what that is."""
        judged = skips.judge(self._found, ci=self.ci)
        for line in judged.lines:
            say(line)
        if not self.options.whole and not self.options.all:
            for name, number in self._left_out.items():
                say(f"left out: {number} test{'s'[: number > 1]} of the group {name}: --all {name} runs them")
        if not self._found and not self._before and not status:
            say("no test matches")
            return NO_TESTS
        failed = judged.failed or any(result.outcome == "failed" for result in self._found)
        return status or int(failed)


def _environment(section: Section) -> Mapping[str, str]:
    return {**os.environ, SEED: str(section.seed)}

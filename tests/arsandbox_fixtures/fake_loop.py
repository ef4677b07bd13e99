"""Loops on the fake engine in child processes that may die at any moment; what must hold of what they leave."""

from __future__ import annotations

import difflib
import itertools
import multiprocessing
import os
import random
import re
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arsandbox.sandbox import audit
from arsandbox.sandbox.engines.fake import FakeEngine, Fault, Script
from arsandbox.sandbox.engines.port import SandboxSpec
from arsandbox.sandbox.errors import ArsandboxError
from arsandbox.sandbox.events import Silent
from arsandbox.sandbox.ledger import Ledger
from arsandbox.sandbox.loop.bounds import Bounds
from arsandbox.sandbox.loop.running import Order, loop
from arsandbox.sandbox.models import Verdict
from arsandbox.sandbox.record import Record
from arsandbox.sandbox.repository import Repository
from arsandbox.sandbox.settings import Options

FORK = multiprocessing.get_context("fork")
CONFIG = """
image = "cpu"
budget = "20s"
command = ["python", "train.py"]
editable = ["train.py"]

[metric]
name = "loss"
goal = "min"
source = "stdout"

[decision]
rule = "{rule}"
"""
KILLED = 137


def train(answer: float = 10.0, extra: float = 0.0, middle: str = "pass") -> str:
    """A train.py whose loss is `answer + extra`, give or take noise; they stand apart, so that edits do not meet."""
    between = "pass\n" * 6
    return f"ANSWER = {answer}\n{between}{middle}\n{between}EXTRA = {extra}\n"


def play(noise: float, *, before: Callable[[SandboxSpec], None] = lambda spec: None) -> Callable[[SandboxSpec], Script]:
    """What the fake sandbox does: prints the answer that the uppermost train.py holds, plus the seed's noise."""

    def run(spec: SandboxSpec) -> Script:
        before(spec)
        text = next(file.read_text() for layer in spec.layers if (file := Path(layer) / "train.py").exists())
        if "raise" in text:
            return Script(output=b"Traceback: it was raised\n", exit_code=1)
        value = sum(map(float, re.findall(r"^(?:ANSWER|EXTRA) = (\S+)$", text, re.MULTILINE)))
        value += random.Random(int(spec.environment["ARSANDBOX_SEED"])).gauss(0, 1) * noise
        return Script(output=f"METRIC loss={value}\n".encode())

    return run


@dataclass
class Ended:
    """A child that ended: its exit code (negative: the signal), and what it said where it failed."""

    code: int
    said: str


@dataclass
class FakeLoop:
    """A repository, a queue of patches for it, and the loop over both."""

    made: Any
    queue: Path
    noise: float = 0.0
    listener: Silent = field(default_factory=Silent)
    tag: str = "t"
    propose: str = ""
    # Called in each sandbox's run, with its number from 1.
    running: Callable[[int], None] = lambda number: None

    def offer(self, texts: Mapping[str, str], *, over: str | None = None) -> None:
        """Queue a patch for each text of train.py, made against `over` (default: the base's)."""
        self.queue.mkdir(exist_ok=True)
        old = (over or train()).splitlines(keepends=True)
        for name, text in texts.items():
            lines = difflib.unified_diff(old, text.splitlines(keepends=True), "a/train.py", "b/train.py")
            (self.queue / f"{name}.patch").write_text("".join(lines))

    def engine(self, faults: Sequence[Fault] = ()) -> FakeEngine:
        asked = itertools.count(1)

        return FakeEngine(
            play(self.noise, before=lambda spec: self.running(next(asked))), faults, isolation="container"
        )

    def rounds(
        self, *, resume: bool = False, engine: FakeEngine | None = None, bounds: Bounds | None = None, **order: Any
    ) -> list[Record]:
        """The loop in this process."""
        engine = engine or self.engine()
        options = Options(tag=self.tag, accept_self_reported=True)
        asked = Order(
            self.made.path, self.propose or f"patches:{self.queue}", options, bounds or Bounds(), resume=resume, **order
        )  # fmt: skip
        return list(loop(asked, engine, engine.find_image, self.listener))

    def child(
        self, *, die_at: str = "", kill_after_s: float | None = None, faults: Sequence[Fault] = (),
        resume: bool = False, **order: Any,
    ) -> Ended:  # fmt: skip
        """The loop in a process of its own, which ends at the step `die_at`, or by SIGKILL after some seconds."""
        receive, send = FORK.Pipe(duplex=False)
        process = FORK.Process(target=self._in_child, args=(send, die_at, faults, resume, order))
        with ExitStack() as stack:
            stack.callback(receive.close)
            process.start()
            send.close()
            process.join(60 if kill_after_s is None else kill_after_s)
            if process.exitcode is None:
                os.kill(process.pid or 0, signal.SIGKILL)
                process.join()
            try:
                said = receive.recv()
            except EOFError:
                said = ""
        assert process.exitcode is not None
        return Ended(process.exitcode, said)

    def _in_child(self, send: Any, die_at: str, faults: Sequence[Fault], resume: bool, order: dict[str, Any]) -> None:
        os.environ["ARSANDBOX_TEST_DIE_AT"] = die_at
        try:
            self.rounds(resume=resume, engine=self.engine(faults), **order)
        except ArsandboxError as error:
            send.send(error.message)
            os._exit(error.exit_code)
        os._exit(0)

    def until_done(self, ended: Ended, *, tries: int = 3) -> None:
        """Resume, or start where there is nothing to resume yet, until the loop says that it is done."""
        for _ in range(tries):
            if ended.code == 0:
                return
            ended = self.child(resume=bool(self.journals()))
        raise AssertionError(f"the loop does not get to its end: {ended}")

    # --- what is there afterwards ---------------------------------------------------------------------------

    @property
    def repository(self) -> Repository:
        return Repository.open(self.made.path)

    def journals(self) -> list[Path]:
        return list(self.repository.state.glob("loops/*/loop.json"))

    def records(self) -> list[Record]:
        """Oldest first."""
        with Ledger.open(self.repository.state) as ledger:
            return ledger.latest()[::-1]

    def ends(self) -> dict[str, Record]:
        """The record that a proposal ended with, by the name of its patch; none may have two."""
        found: dict[str, Record] = {}
        for record in self.records():
            if record.round is None or record.part is not None:
                continue
            if record.verdict in (Verdict.INTERRUPTED, Verdict.PENDING, Verdict.BASELINE):
                continue
            name = record.description.partition(".patch")[0]
            assert name not in found, f"{name} was counted twice"
            found[name] = record
        return found

    def check(self, *, over: bool) -> None:
        """The chain is whole, the branch holds each promotion of the ledger once, in order, and nothing is left.

        `over`: the loop is; else its controller has just died, and only what it may never break is looked at.
        """
        repository = self.repository
        promoted = [record.promotion.commit for record in self.records() if record.promotion]
        tip = repository.branch_tip(f"arsandbox/{self.tag}")
        listed = self.made.git("rev-list", "--reverse", f"main..{tip}").split() if tip else []
        seeds = [record.seed for record in self.records() if record.confirms is None]
        assert len(seeds) == len(set(seeds)), "a draw was counted twice"
        self.ends()
        if over:
            assert listed == promoted
            assert audit.problems(repository) == []
            assert list((repository.state / "runs").iterdir()) == []
            with Ledger.open(repository.state) as ledger:
                assert ledger.open_experiments() == []
        else:
            assert listed[: len(promoted)] == promoted and len(listed) <= len(promoted) + 1
        assert self.made.git("status", "--porcelain") == ""
        assert self.made.git("rev-parse", "HEAD") == self.made.git("rev-parse", "main")


def moments(seed: int, number: int, longest_s: float) -> list[float]:
    """Seconds after which to kill, drawn from `seed`; the first ones come early, so that there is something to kill."""
    chance = random.Random(seed)
    return sorted(chance.uniform(0.02, longest_s) for _ in range(number))


def timed(work: Callable[[], object]) -> float:
    """Seconds that `work` takes."""
    began = time.monotonic()
    work()
    return time.monotonic() - began

"""What the fake engine's sandboxes do, and which of its calls fail."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from pydantic import Field

from arsandbox.sandbox.engines.port import SandboxSpec
from arsandbox.sandbox.errors import MachineError, NotRemovedError
from arsandbox.sandbox.models import Model, Stage, Termination

Call = Literal[
    "sandbox", "enter", "run", "changes", "collect", "exit",
    "find_image", "has_image", "load_image", "sweep", "labelled", "info",
]  # fmt: skip


class Script(Model):
    """What one sandbox's command would do. The spec's limits and deadline are then applied to it.

    `output` is everything it writes (bytes; a string in JSON), `seconds` how long it would run (no time
    passes), `memory_bytes` and `pids` its peaks, `files` and `deleted` what it does to the workspace.
    A `termination` is taken as it stands, whatever the limits say.
    """

    output: bytes = b""
    exit_code: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0
    memory_bytes: int = 0
    pids: int = 2
    files: dict[str, bytes] = Field(default_factory=dict)
    deleted: tuple[str, ...] = ()
    termination: Termination | None = None


class Fault(Model):
    """One call that goes wrong: the `nth` of its kind, before or after it did its work.

    `error` raises MachineError (at an `exit` NotRemovedError), `interrupt` KeyboardInterrupt, `kill` ends this process
    with SIGKILL.
    """

    call: Call
    nth: int = Field(default=1, ge=1)
    moment: Literal["before", "after"] = "before"
    kind: Literal["error", "interrupt", "kill"] = "error"
    message: str = "a scripted fault"

    def happen(self) -> None:
        """Do it."""
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind == "interrupt":
            raise KeyboardInterrupt
        kind = NotRemovedError if self.call == "exit" else MachineError
        raise kind(f"{self.message} ({self.call} call {self.nth})", hint="a scripted fault: mend the script")


class ScriptFile(Model):
    """A JSON file of scripts for the engine that `--engine fake` opens (its path: ARSANDBOX_FAKE_SCRIPT).

    `stages`: for each stage the scripts of its sandboxes in order, the last one again and again.
    """

    isolation: str = "none"
    stages: dict[Stage, tuple[Script, ...]] = Field(default_factory=dict)
    faults: tuple[Fault, ...] = ()


# Asked by `run`, in the thread that waits: it may look at the layers, or talk through the spec's mounts.
Play = Callable[[SandboxSpec], Script]


def scripted(stages: Mapping[Stage, Script | Sequence[Script]]) -> Play:
    """A play with each stage's scripts in order, the last one again and again; other stages do nothing."""
    told = {stage: (one,) if isinstance(one, Script) else tuple(one) for stage, one in stages.items()}
    asked: Counter[Stage] = Counter()
    lock = threading.Lock()

    def play(spec: SandboxSpec) -> Script:
        scripts = told.get(spec.stage) or (Script(),)
        with lock:
            number = asked[spec.stage]
            asked[spec.stage] += 1
        return scripts[min(number, len(scripts) - 1)]

    return play


class Faults:
    """Counts the calls of each kind, over all threads, and lets the scripted faults happen."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self._faults = tuple(faults)
        self._lock = threading.Lock()
        self.calls: Counter[Call] = Counter()

    def before(self, call: Call) -> int:
        """Count one `call` and fail it where that is scripted; returns its number, from 1."""
        with self._lock:
            self.calls[call] += 1
            number = self.calls[call]
        self._happen(call, number, "before")
        return number

    def after(self, call: Call, number: int) -> None:
        """Fail a call that has done its work, where that is scripted."""
        self._happen(call, number, "after")

    def _happen(self, call: Call, number: int, moment: str) -> None:
        for fault in self._faults:
            if (fault.call, fault.nth, fault.moment) == (call, number, moment):
                fault.happen()

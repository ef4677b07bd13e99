"""From the host's evidence to the typed reason why a sandbox ended. Exit code 137 proves nothing."""

from __future__ import annotations

import signal
from dataclasses import dataclass

from arsandbox.policies.model import Limits
from arsandbox.sandbox.models import Reason, Termination
from arsandbox.sandbox.quantities import format_duration, format_size


@dataclass(frozen=True)
class Evidence:
    """What the host saw. `cause` is why the controller ended it, or None when it ended by itself."""

    cause: str | None
    exit_code: int | None
    oom_killed: bool
    pids_refused: int
    full: tuple[str, ...]
    engine_error: str = ""


def terminate(evidence: Evidence, limits: Limits, deadline_s: float) -> Termination:
    """The typed termination; the first that holds: timeout, output, interrupted, oom, pids, disk, crash."""
    code = evidence.exit_code
    number = code - 128 if code is not None and code > 128 and _is_signal(code - 128) else None
    failed = code != 0
    if evidence.cause == "timeout":
        return _ended(Reason.TIMEOUT, f"still running at its deadline of {format_duration(deadline_s)}")
    if evidence.cause == "output":
        return _ended(Reason.OUTPUT, f"wrote more than {format_size(limits.output_bytes)} to its output")
    if evidence.cause == "enough":
        return _ended(Reason.INTERRUPTED, "ended by its controller")
    if evidence.oom_killed:
        return Termination(
            reason=Reason.OOM,
            exit_code=code,
            signal=number,
            detail=f"the kernel killed a process at the memory limit of {format_size(limits.memory_bytes)}",
        )
    if failed and evidence.pids_refused:
        reason, detail = Reason.PIDS, f"the kernel refused a new process at the limit of {limits.pids}"
    elif failed and evidence.full:
        reason, detail = Reason.DISK, f"{' and '.join(evidence.full)} was full"
    elif failed:
        reason, detail = Reason.CRASH, _crash(code, number, evidence.engine_error)
    else:
        reason, detail = Reason.COMPLETED, "exited with 0"
    return Termination(reason=reason, exit_code=code, signal=number, detail=detail)


def _ended(reason: Reason, detail: str) -> Termination:
    return Termination(reason=reason, exit_code=None, signal=int(signal.SIGKILL), detail=detail)


def _crash(code: int | None, number: int | None, engine_error: str) -> str:
    if engine_error:
        return f"could not start: {engine_error.splitlines()[0].split('container process: ')[-1]}"
    if number is not None:
        return f"exited with {code} ({signal.Signals(number).name}, by the kernel's word no out-of-memory kill)"
    return f"exited with {code}"


def _is_signal(number: int) -> bool:
    return number in {int(member) for member in signal.Signals}

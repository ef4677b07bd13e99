"""The precedence of termination reasons, as a table over all combinations of evidence."""

from __future__ import annotations

import itertools

import pytest

from arsandbox.policies.model import Limits
from arsandbox.sandbox.engines.termination import Evidence, terminate
from arsandbox.sandbox.models import Reason

LIMITS = Limits()


def evidence(**changes: object) -> Evidence:
    values: dict[str, object] = {
        "cause": None, "exit_code": 0, "oom_killed": False, "pids_refused": 0, "full": (), "engine_error": "",
    }  # fmt: skip
    return Evidence(**{**values, **changes})  # type: ignore[arg-type]


def test_every_combination_follows_the_documented_order() -> None:
    for cause, code, oom, pids, full in itertools.product(
        (None, "timeout", "output"), (0, 1, 137, None), (False, True), (0, 3), ((), ("/tmp",))
    ):
        found = terminate(
            evidence(cause=cause, exit_code=code, oom_killed=oom, pids_refused=pids, full=full), LIMITS, 330.0
        )
        if cause is not None:
            wanted = Reason(cause)
        elif oom:
            wanted = Reason.OOM
        elif code == 0:
            wanted = Reason.COMPLETED
        elif pids:
            wanted = Reason.PIDS
        elif full:
            wanted = Reason.DISK
        else:
            wanted = Reason.CRASH
        assert found.reason is wanted, (cause, code, oom, pids, full)
        assert found.detail and "\n" not in found.detail


@pytest.mark.parametrize(
    ("code", "number"),
    [(0, None), (1, None), (128, None), (129, 1), (134, 6), (137, 9), (139, 11), (143, 15), (255, None), (None, None)],
)
def test_the_signal_is_read_from_the_exit_code(code: int | None, number: int | None) -> None:
    found = terminate(evidence(exit_code=code), LIMITS, 1.0)
    assert (found.exit_code, found.signal) == (code, number)


def test_exit_code_137_alone_is_no_memory_kill_and_says_so() -> None:
    found = terminate(evidence(exit_code=137), LIMITS, 1.0)
    assert found.reason is Reason.CRASH
    assert "SIGKILL" in found.detail and "no out-of-memory kill" in found.detail


def test_a_memory_kill_of_a_child_counts_although_the_run_ended_with_zero() -> None:
    found = terminate(evidence(oom_killed=True), LIMITS, 1.0)
    assert found.reason is Reason.OOM and "16.0 GiB" in found.detail


def test_what_the_controller_ended_has_its_own_signal_and_names_the_limit() -> None:
    late = terminate(evidence(cause="timeout", exit_code=0), LIMITS, 330.0)
    assert (late.exit_code, late.signal) == (None, 9) and "5m30s" in late.detail
    loud = terminate(evidence(cause="output", exit_code=0), LIMITS, 330.0)
    assert (loud.exit_code, loud.signal) == (None, 9) and "16.0 MiB" in loud.detail


def test_a_full_disk_is_named() -> None:
    found = terminate(evidence(exit_code=1, full=("the workspace", "/tmp")), LIMITS, 1.0)
    assert found.detail == "the workspace and /tmp was full"


@pytest.mark.parametrize("error", ["\n", "no container process: x\nsecond line", "exec: python: not found"])
def test_an_engine_error_becomes_one_line(error: str) -> None:
    found = terminate(evidence(exit_code=127, engine_error=error), LIMITS, 1.0)
    assert found.reason is Reason.CRASH
    assert found.detail.startswith("could not start") and "\n" not in found.detail

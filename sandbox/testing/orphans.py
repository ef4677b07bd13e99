"""A controller that dies by SIGKILL: its sandbox ends all the same, and a sweep removes what is left."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from arsandbox.sandbox import host
from arsandbox.sandbox.engines.port import SandboxSpec
from arsandbox.sandbox.models import Guarantee
from arsandbox.sandbox.testing.contract import Contract
from arsandbox.sandbox.testing.endings import processes_with
from arsandbox.sandbox.testing.subject import Subject, Watching, specify
from arsandbox.sandbox.workspace.overlay import unmount_below

_WAIT_S = 60.0


class OrphansContract(Contract):
    """For engines that run processes and are found by their entry point."""

    def test_a_killed_controller(self, subject: Subject, places: Callable[[], Path]) -> None:
        if subject.keeps("deadline_without_controller") is not Guarantee.ENFORCED:
            pytest.skip("declared: a sandbox may outlive its controller")
        marker = "orphan-" + os.urandom(6).hex()
        program = f"""
            import os, sys, time
            if not os.fork():
                os.setsid()
            if len(sys.argv) == 1:
                os.execv(sys.executable, [sys.executable, "program.py", "{marker}"])
            os.write(1, b"running\\n")  # at once: both processes say it
            time.sleep(600)
        """
        spec = specify(subject, places(), program, deadline_s=6)
        began = time.monotonic()
        _run_and_kill(subject.name, spec)
        while processes_with(marker):
            assert time.monotonic() - began < _WAIT_S, "still running long after its deadline"
            time.sleep(0.1)
        subject.engine.sweep({host.EXPERIMENT_LABEL: spec.experiment})
        assert spec.experiment not in subject.engine.labelled(host.EXPERIMENT_LABEL)
        assert subject.engine.sweep({host.EXPERIMENT_LABEL: spec.experiment}) == []
        unmount_below(spec.scratch)  # as recovery does with a dead controller's run directory

    def test_the_deadline_belongs_to_the_sandbox_and_not_to_the_thread_that_made_it(
        self, subject: Subject, places: Callable[[], Path]
    ) -> None:
        """A sandbox dies with its controller, not with a thread that ended before it (`--die-with-parent`)."""
        made: list[object] = []
        spec = specify(subject, places(), "import time; time.sleep(1); print('alive')")
        manager = subject.engine.sandbox(spec)
        maker = threading.Thread(target=lambda: made.append(manager.__enter__()))
        maker.start()
        maker.join()
        watching = Watching()
        try:
            outcome = made[0].run(watching)  # type: ignore[attr-defined] # a Sandbox
        finally:
            manager.__exit__(None, None, None)
        assert (outcome.termination.exit_code, watching.output_seen) == (0, b"alive\n")


def _run_and_kill(name: str, spec: SandboxSpec) -> None:
    """Run `spec` in a controller of its own, and kill that with SIGKILL once the program has said something."""
    controller = subprocess.Popen(
        [sys.executable, "-P", "-m", "arsandbox.sandbox.testing.controller", name],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert controller.stdin is not None and controller.stdout is not None
    with controller:
        controller.stdin.write(spec.model_dump_json().encode())
        controller.stdin.close()
        said = controller.stdout.readline()
        controller.kill()
    assert said == b"running\n"

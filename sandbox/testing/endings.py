"""Processes that will not end, orphans, signals and commands that cannot be started."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from arsandbox.policies.model import MIB
from arsandbox.sandbox.models import Reason
from arsandbox.sandbox.testing.contract import Box, Contract
from arsandbox.sandbox.testing.subject import Ended


def processes_with(marker: str) -> list[str]:
    """Processes of this host whose command line holds `marker` (sandboxes' processes are visible here)."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            line = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if marker in line and directory.name != str(os.getpid()):
            found.append(line)
    return found


def overshoot(done: Ended, deadline_s: float) -> float:
    assert done.reason is Reason.TIMEOUT, (done.outcome, done.text[-500:])
    return float(done.outcome.wall_s - deadline_s)


class EndingsContract(Contract):
    """For engines that run processes."""

    def test_sigterm_is_ignored(self, box: Box) -> None:
        program = """
            import signal
            for number in range(1, 65):
                try: signal.signal(number, signal.SIG_IGN)
                except (OSError, ValueError): pass
            while True: pass
        """
        done = box(program, deadline_s=2)
        assert 0 <= overshoot(done, 2) < 2
        assert "2.0s" in done.outcome.termination.detail

    def test_a_daemon_outlives_nothing_at_the_deadline(self, box: Box) -> None:
        marker = "daemon-" + os.urandom(6).hex()
        program = f"""
            import os, time, subprocess, sys
            if not os.fork():
                os.setsid()
                if not os.fork():
                    os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(600)", "{marker}"])
                os._exit(0)
            time.sleep(600)
        """
        done = box(program, deadline_s=2)
        assert overshoot(done, 2) < 2
        assert processes_with(marker) == []

    def test_a_daemon_ends_with_the_main_process(self, box: Box) -> None:
        marker = "daemon-" + os.urandom(6).hex()
        program = f"""
            import os, time, sys
            if not os.fork():
                os.setsid()
                if not os.fork():
                    os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(600)", "{marker}"])
                os._exit(0)
            time.sleep(0.3)
        """
        done = box(program, deadline_s=20)
        assert done.reason is Reason.COMPLETED, done.outcome
        assert done.outcome.wall_s < 10
        assert processes_with(marker) == []
        assert done.text.endswith("\narsandbox: processes that outlived the command: 1\n"), done.text

    def test_a_process_that_stops_itself(self, box: Box) -> None:
        program = """
            import os, signal
            if not os.fork():
                os.kill(os.getpid(), signal.SIGSTOP)
            os.kill(os.getpid(), signal.SIGSTOP)
            os.wait()
        """
        assert overshoot(box(program, deadline_s=2), 2) < 2

    def test_a_fork_bomb_at_the_deadline(self, box: Box) -> None:
        program = """
            import os, signal
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
            while True:
                try: os.fork()
                except OSError: pass
        """
        began = time.monotonic()
        done = box(program, deadline_s=3, pids=256, cpus=2, memory_bytes=2048 * MIB)
        took = time.monotonic() - began
        assert overshoot(done, 3) < 2
        assert took < 3 + 15
        assert done.outcome.usage.peak_pids <= 257

    @pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGABRT"])
    def test_a_signal_of_its_own_is_a_crash(self, box: Box, name: str) -> None:
        """The same as for any program started by hand; that needs an init of ours as process 1 (containment, 9)."""
        program = f"""
            import os, signal, time
            os.kill(os.getpid(), signal.{name})
            time.sleep(0.5)
            print("still here", flush=True)
        """
        done = box(program)
        assert done.reason is Reason.CRASH, (done.outcome.termination, done.text)

        assert done.outcome.termination.signal == getattr(signal, name)

    def test_a_segmentation_fault(self, box: Box) -> None:
        done = box("import ctypes; ctypes.string_at(0)")
        assert (done.reason, done.outcome.termination.signal) == (Reason.CRASH, 11), done.outcome

    def test_orphans_are_reaped(self, box: Box) -> None:
        """Zombies of double forks would use up the pids limit (containment, 9)."""
        program = """
            import os, time
            for _ in range(100):
                if not os.fork():
                    if not os.fork(): os._exit(0)
                    os._exit(0)
                os.wait()
            time.sleep(0.2)
            zombies = 0
            for name in os.listdir("/proc"):
                if name.isdigit():
                    try: zombies += ") Z " in open(f"/proc/{name}/stat").read()
                    except OSError: pass
            print("zombies", zombies)
        """
        done = box(program, pids=40)
        assert done.reason is Reason.COMPLETED, (done.outcome.termination, done.text[-300:])
        assert done.text.strip() == "zombies 0"

    @pytest.mark.parametrize("command", [["no-such-program"], ["/workspace/program.py"], ["/workspace"]])
    def test_a_command_that_cannot_be_started(self, box: Box, command: list[str]) -> None:
        done = box("print(1)", command=command)
        assert done.reason is Reason.CRASH, done.outcome
        assert done.outcome.termination.exit_code in (126, 127)
        assert "\n" not in done.outcome.termination.detail

"""Every way in which a sandbox can end has its own reason, told by the host's evidence."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import arsandbox_test_support as support
import pytest

from arsandbox.sandbox.models import Reason

pytestmark = [pytest.mark.engine, pytest.mark.timeout(120)]

EAT = """
blocks = []
while True:
    blocks.append(bytearray(b"x") * (4 << 20))
"""


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


def overshoot(done: Any, deadline_s: float) -> float:
    assert done.reason is Reason.TIMEOUT, (done.outcome, done.text[-500:])
    return float(done.outcome.wall_s - deadline_s)


def test_memory_of_the_main_process(box: Any) -> None:
    done = box(EAT, memory_bytes=64 * support.MIB)
    assert done.reason is Reason.OOM, done.outcome
    assert "64.0 MiB" in done.outcome.termination.detail
    assert done.outcome.usage.peak_memory_bytes <= 65 * support.MIB


def test_memory_of_a_child_while_the_main_process_ends_well(box: Any) -> None:
    program = f"""
import os, subprocess, sys
done = subprocess.run([sys.executable, "-c", {EAT!r}])
print("child", done.returncode)
sys.exit(0)
"""
    done = box(program, memory_bytes=64 * support.MIB)
    assert done.reason is Reason.OOM, (done.outcome, done.text)


def test_memory_in_tmp_counts(box: Any) -> None:
    """A tmpfs is memory: filling it cannot get around the limit."""
    program = """
        import os
        with open("/tmp/a", "wb") as file:
            for _ in range(200): file.write(bytes(1 << 20))
    """
    done = box(program, memory_bytes=48 * support.MIB, tmp_bytes=256 * support.MIB)
    assert done.reason in (Reason.OOM, Reason.DISK), done.outcome


def test_just_enough_memory_is_no_oom(box: Any) -> None:
    done = box("block = bytearray(b'x') * (30 << 20); print(len(block))", memory_bytes=64 * support.MIB)
    assert done.reason is Reason.COMPLETED, done.outcome
    assert done.outcome.termination.exit_code == 0


def test_sigterm_is_ignored(box: Any) -> None:
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


def test_a_daemon_outlives_nothing_at_the_deadline(box: Any) -> None:
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


def test_a_daemon_ends_with_the_main_process(box: Any) -> None:
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


def test_a_process_that_stops_itself(box: Any) -> None:
    program = """
        import os, signal
        if not os.fork():
            os.kill(os.getpid(), signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        os.wait()
    """
    assert overshoot(box(program, deadline_s=2), 2) < 2


def test_a_fork_bomb_at_the_deadline(box: Any) -> None:
    program = """
        import os, signal
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            try: os.fork()
            except OSError: pass
    """
    began = time.monotonic()
    done = box(program, deadline_s=3, pids=256, cpus=2, memory_bytes=2048 * support.MIB)
    took = time.monotonic() - began
    assert overshoot(done, 3) < 2
    assert took < 3 + 15
    assert done.outcome.usage.peak_pids <= 257


def test_forking_until_the_kernel_says_no(box: Any) -> None:
    program = """
        import os, time
        while True:
            if not os.fork():
                time.sleep(30)
                os._exit(0)
    """
    done = box(program, pids=20)
    assert done.reason is Reason.PIDS, (done.outcome, done.text)
    assert "Resource temporarily unavailable" in done.text
    assert "20" in done.outcome.termination.detail


def test_threads_count_as_processes(box: Any) -> None:
    program = """
        import threading, time
        while True:
            threading.Thread(target=time.sleep, args=(30,), daemon=True).start()
    """
    assert box(program, pids=20).reason is Reason.PIDS


def test_the_bytes_of_the_workspace(box: Any) -> None:
    program = """
        with open("big", "wb") as file:
            while True: file.write(bytes(1 << 20)); file.flush()
    """
    done = box(program, disk_bytes=12 * support.MIB)
    assert done.reason is Reason.DISK, (done.outcome, done.text)
    assert "No space left on device" in done.text
    assert done.outcome.usage.disk_bytes <= 12 * support.MIB
    assert done.home_free_before - done.home_free_after < 200 * support.MIB


def test_the_inodes_of_the_workspace(box: Any) -> None:
    program = """
        for number in range(10**6): open(f"file{number}", "w").close()
    """
    done = box(program, disk_inodes=300)
    assert done.reason is Reason.DISK, (done.outcome, done.text)
    assert "No space left on device" in done.text
    assert 100 < len(done.changes.paths) < 320


@pytest.mark.parametrize("directory", ["/tmp", "/dev/shm"])
def test_a_full_tmpfs_is_disk_however_fast_the_process_ends(box: Any, directory: str) -> None:
    """Whatever the program does next: the reason must not depend on who looks first."""
    program = f"""
        with open("{directory}/big", "wb") as file:
            while True: file.write(bytes(1 << 18)); file.flush()
    """
    ends = [box(program, tmp_bytes=2 * support.MIB, shm_bytes=2 * support.MIB) for _ in range(3)]
    assert all("No space left on device" in done.text for done in ends)
    assert [done.reason for done in ends] == [Reason.DISK] * 3, [done.outcome.termination for done in ends]


def test_the_inodes_of_tmp(box: Any) -> None:
    program = """
        import time
        try:
            for number in range(10**6): open(f"/tmp/file{number}", "w").close()
        except OSError as error:
            print(error, flush=True)
            time.sleep(0.5)
            raise
    """
    done = box(program, disk_inodes=300)
    assert done.reason is Reason.DISK, (done.outcome, done.text)


def test_a_program_that_survives_a_full_disk_completes(box: Any) -> None:
    program = """
        import os
        try:
            with open("big", "wb") as file:
                while True: file.write(bytes(1 << 20)); file.flush()
        except OSError: os.unlink("big")
    """
    assert box(program, disk_bytes=12 * support.MIB).reason is Reason.COMPLETED


@pytest.mark.parametrize("line", [b"x" * 65536, b"loss: 1.5\n" * 6000, b"\r" * 65536])
def test_an_output_flood(box: Any, line: bytes) -> None:
    program = f"""
        import os
        block = {line[:10]!r} * {len(line) // 10}
        while True: os.write(1, block)
    """
    done = box(program, output_bytes=256 * 1024)
    assert done.reason is Reason.OUTPUT, done.outcome
    assert len(done.output) == 256 * 1024
    assert done.outcome.wall_s < 10


def test_an_output_flood_just_before_the_end(box: Any) -> None:
    done = box('import os; os.write(1, b"x" * 60_000)', output_bytes=50_000)
    assert done.reason is Reason.OUTPUT, done.outcome


def test_output_of_both_streams_to_the_last_byte(box: Any) -> None:
    program = """
        import os
        for number in range(2000):
            os.write(1 + number % 2, b"%05d\\n" % number)
    """
    done = box(program)
    assert done.reason is Reason.COMPLETED
    assert sorted(done.text.split()) == [f"{number:05}" for number in range(2000)]


@pytest.mark.parametrize("flood", ["x * 65536", "'loss: 1.5\\\\n' * 6000"])
def test_a_flood_does_not_grow_the_controller(project: Any, flood: str) -> None:
    quiet = project()
    train = support.answering(10, before="pass")
    calm = peak_of(quiet, train)
    noisy = project({"arsandbox.toml": support.CONFIG + 'output = "48m"\n'})
    program = f"""
        import os
        x = "x"
        block = ({flood}).encode()
        while True: os.write(1, block)
    """
    loud = peak_of(noisy, support.answering(10, before=program), verdict="output")
    assert loud - calm < 24 * support.MIB, (loud, calm)
    log = next(noisy.state().glob("experiments/*/train.log"))
    assert 40 * support.MIB < max(p.stat().st_size for p in log.parents[1].glob("*/train.log")) <= 48 * support.MIB


def peak_of(project: Any, train: str, verdict: str = "baseline") -> int:
    """The peak resident memory of a controller that runs `train` as the base commit."""
    project.commit({"train.py": train})
    running = project.start("--json")
    peak = 0
    while running.process.poll() is None:
        try:
            status = Path(f"/proc/{running.process.pid}/status").read_text()
            peak = max([peak, *(int(row.split()[1]) * 1024 for row in status.splitlines() if row.startswith("VmHWM"))])
        except OSError:
            break
        time.sleep(0.01)
    done = running.wait()
    assert done.record["verdict"] == verdict, done
    return peak


def test_exit_code_137_is_a_crash(box: Any) -> None:
    done = box("import sys; sys.exit(137)")
    assert done.reason is Reason.CRASH, done.outcome
    assert done.outcome.termination.exit_code == 137


def test_an_ordinary_exit_code(box: Any) -> None:
    done = box("raise SystemExit(3)")
    assert (done.reason, done.outcome.termination.exit_code) == (Reason.CRASH, 3)
    assert done.outcome.termination.signal is None


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGABRT"])
def test_a_signal_of_its_own_is_a_crash(box: Any, name: str) -> None:
    """The same as for any program started by hand; that needs an init of ours as process 1 (containment, 9)."""
    program = f"""
        import os, signal, time
        os.kill(os.getpid(), signal.{name})
        time.sleep(0.5)
        print("still here", flush=True)
    """
    done = box(program)
    assert done.reason is Reason.CRASH, (done.outcome.termination, done.text)
    import signal

    assert done.outcome.termination.signal == getattr(signal, name)


def test_a_segmentation_fault(box: Any) -> None:
    done = box("import ctypes; ctypes.string_at(0)")
    assert (done.reason, done.outcome.termination.signal) == (Reason.CRASH, 11), done.outcome


def test_orphans_are_reaped(box: Any) -> None:
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
def test_a_command_that_cannot_be_started(box: Any, command: list[str]) -> None:
    done = box("print(1)", command=command)
    assert done.reason is Reason.CRASH, done.outcome
    assert done.outcome.termination.exit_code in (126, 127)
    assert "\n" not in done.outcome.termination.detail


def test_a_timeout_is_a_timeout_even_when_memory_ran_out_late(box: Any) -> None:
    done = box("import time; time.sleep(60)", deadline_s=1)
    assert done.reason is Reason.TIMEOUT
    assert done.outcome.termination.exit_code is None


def test_nothing_is_left_of_all_this(home: Path) -> None:
    assert support.leftovers(home) == []

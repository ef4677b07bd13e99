"""Running other programs so that a signal ends them all, and nothing of theirs outlives this tool."""

from __future__ import annotations

import ctypes
import os
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO

SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
# pytest takes down its fixtures, and its workers get ten seconds for theirs.
GRACE_S = 60.0
LEFTOVER_GRACE_S = 10.0
# Whatever is started from here has this in its environment: that is how it is found again.
MARK = "ARSANDBOX_TEST_RUN"
_PR_SET_PDEATHSIG = 1


class StoppedError(Exception):
    """A signal asked this tool to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class TimeIsUpError(Exception):
    """A program was ended at its time limit."""


class Processes:
    """Starts programs one at a time, in the foreground; signals that come meanwhile are theirs to end from."""

    def __init__(self) -> None:
        self._token = secrets.token_hex(8)
        self._caught: list[int] = []
        self._wake, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Catch the signals that end this tool; what is still running at the end is ended."""
        before = [(number, signal.signal(number, self._catch)) for number in SIGNALS]
        woken = signal.set_wakeup_fd(self._waker)
        try:
            yield
        finally:
            self.end_leftovers()
            signal.set_wakeup_fd(woken)
            for number, handler in before:
                signal.signal(number, handler)

    def run(
        self,
        command: Sequence[str | Path],
        *,
        cwd: Path,
        env: Mapping[str, str] | None = None,
        limit_s: float | None = None,
        output: IO[bytes] | None = None,
    ) -> int:
        """Run a program to its end: its exit status. After a signal or at the limit it is ended, and this raises."""
        self.check()
        child = self._start(command, cwd, env, output)
        try:
            deadline = None if limit_s is None else time.monotonic() + limit_s
            ended = self._ended(child, deadline, seen=0)
            self.check()
            if not ended:
                raise TimeIsUpError
            return int(child.wait())
        finally:
            self._stop(child)

    def check(self) -> None:
        """Raise StoppedError where a signal came."""
        if self._caught:
            raise StoppedError(self._caught[0])

    def leftovers(self) -> list[int]:
        """Processes that were started from here, by whatever way, and still run."""
        wanted = f"{MARK}={self._token}".encode()
        return [pid for pid in _pids() if pid != os.getpid() and wanted in _environment(pid).split(b"\0")]

    def end_leftovers(self) -> list[str]:
        """End what still runs, and return the names of it."""
        names = [_name(pid) for pid in self.leftovers()]
        for number, patience in ((signal.SIGTERM, LEFTOVER_GRACE_S), (signal.SIGKILL, 2.0)):
            end = time.monotonic() + patience
            told: set[int] = set()
            # A process has no environment to be known by while it becomes another program: none twice is none.
            looks_without = 0
            # Each is told once, since a daemon that is told again may drop its work; some start meanwhile.
            while time.monotonic() < end and looks_without < 2:
                left = set(self.leftovers())
                looks_without = 0 if left else looks_without + 1
                for pid in left - told:
                    _kill(pid, number)
                told |= left
                time.sleep(0.05)
        return names

    def _start(
        self, command: Sequence[str | Path], cwd: Path, env: Mapping[str, str] | None, output: IO[bytes] | None
    ) -> subprocess.Popen[bytes]:
        full = {**(os.environ if env is None else env), MARK: self._token}
        return subprocess.Popen(
            [str(word) for word in command], cwd=cwd, env=full, stdout=output,
            stderr=None if output is None else subprocess.STDOUT,
        )  # fmt: skip

    def _catch(self, number: int, frame: FrameType | None) -> None:
        self._caught.append(number)

    def _ended(self, child: subprocess.Popen[bytes], deadline: float | None, *, seen: int) -> bool:
        """Wait for the child; False at the deadline, or as soon as there are more signals than were seen."""
        descriptor = os.pidfd_open(child.pid)
        try:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            poll.register(self._wake, select.POLLIN)
            while len(self._caught) == seen:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                ready = {number for number, _ in poll.poll(None if left is None else left * 1000)}
                if descriptor in ready:
                    return True
                if self._wake in ready:
                    os.read(self._wake, 4096)
                elif not ready:
                    return False
            return False
        finally:
            os.close(descriptor)

    def _stop(self, child: subprocess.Popen[bytes]) -> None:
        """End the child where it still runs: as Ctrl-C does, at a second signal or after a while with force."""
        for number, patience in ((signal.SIGINT, GRACE_S), (signal.SIGTERM, LEFTOVER_GRACE_S)):
            if child.poll() is None:
                child.send_signal(number)
                self._ended(child, time.monotonic() + patience, seen=len(self._caught))
        if child.poll() is None:
            child.kill()
        child.wait()


@contextmanager
def busy(number: int) -> Iterator[None]:
    """Keep `number` processors busy meanwhile, by processes that end with this one, however it ends."""
    program = Path(__file__).with_name("busy.py")
    loops: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(number):
            loops.append(subprocess.Popen([sys.executable, str(program), str(os.getpid())], stdin=subprocess.DEVNULL))
        yield
    finally:
        for loop in loops:
            loop.kill()
        for loop in loops:
            loop.wait()


def end_with_parent(parent: int, number: int) -> None:
    """Have the kernel send this process the signal `number` when its parent, of which the pid is given, is gone."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _environment(pid: int) -> bytes:
    """A process's environment; nothing where it is gone, or another user's."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def _name(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return str(pid)
    return f"{pid} {b' '.join(words).decode(errors='replace').strip()[:80]}"


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass

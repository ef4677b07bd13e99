"""One bubblewrap process: started, held before the command, released, killed, waited for."""

from __future__ import annotations

import fcntl
import inspect
import json
import marshal
import os
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from arsandbox.sandbox.engines.embedded import launcher

_START_S = 30.0


class Descriptors:
    """Anonymous files that bwrap reads: numbers stay the same in the child."""

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def data(self, content: bytes) -> int:
        """A descriptor from which `content` can be read."""
        descriptor = os.memfd_create("arsandbox", os.MFD_CLOEXEC)
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(content)
        os.lseek(descriptor, 0, os.SEEK_SET)
        self.numbers.append(descriptor)
        return descriptor

    def pipe(self, *, child_reads: bool) -> tuple[int, int]:
        """A pipe as (child's end, our end)."""
        reading, writing = os.pipe2(os.O_CLOEXEC)
        ends = (reading, writing) if child_reads else (writing, reading)
        self.numbers.append(ends[0])
        return ends

    def close(self) -> None:
        """Close the child's ends in this process."""
        for descriptor in self.numbers:
            os.close(descriptor)
        self.numbers = []


class Box:
    """A bubblewrap that waits before its command until `release`.

    Must be made, and waited for, by the same thread: the kernel ends the sandbox when the thread that started it
    ends (PR_SET_PDEATHSIG, prctl(2)).
    """

    def __init__(
        self,
        program: str,
        options: Sequence[str],
        command: Sequence[str],
        *,
        descriptors: Descriptors,
        sources: Sequence[Path],
        uid: int | None,
        limits: dict[str, int],
    ) -> None:
        child_info, self._info = descriptors.pipe(child_reads=False)
        self._child_gate, self._gate = descriptors.pipe(child_reads=True)
        gate = os.dup(self._child_gate)  # kept: how we learn whether the command was ever reached
        pipes = [descriptors.pipe(child_reads=False) for _ in range(2)]
        (child_output, child_errors), self.output = zip(*pipes, strict=True)
        words = [*options, "--info-fd", str(child_info), "--block-fd", str(self._child_gate)]
        arguments = descriptors.data(b"\0".join(os.fsencode(word) for word in words) + b"\0")
        request = {
            "argv": [program, "--args", str(arguments), "--", *command],
            "sources": [str(source) for source in sources],
            "uid": uid,
            "limits": limits,
            "parent": os.getpid(),
        }
        started = descriptors.data(marshal.dumps(request))
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", inspect.getsource(launcher), str(started)],
                stdin=subprocess.DEVNULL,
                stdout=child_output,
                stderr=child_errors,
                pass_fds=[number for number in descriptors.numbers if number not in (child_output, child_errors)],
                env={},
                cwd="/",
            )
        except OSError:
            for descriptor in (self._info, self._gate, gate, *self.output):
                os.close(descriptor)
            raise
        descriptors.close()
        self._child_gate = gate
        self._monitor = os.pidfd_open(self._process.pid)
        self._first = -1
        self._released = False
        self.pid = 0
        self.usage_s = 0.0

    def wait_for_first(self) -> bool:
        """Wait until process 1 exists; False when bwrap gave up before. Then `pid` is its number on this host."""
        text = b""
        end = time.monotonic() + _START_S
        while time.monotonic() < end and select.select([self._info], [], [], max(0.0, end - time.monotonic()))[0]:
            block = os.read(self._info, 4096)
            text += block
            if not block or text.rstrip().endswith(b"}"):
                break
        try:
            answer: dict[str, Any] = json.loads(text)
            self.pid = int(answer["child-pid"])
            self._first = os.pidfd_open(self.pid)
        except (ValueError, KeyError, ProcessLookupError):
            return False
        return True

    def release(self) -> None:
        """Let the command begin."""
        os.write(self._gate, b"x")
        self._released = True

    @property
    def reached_command(self) -> bool:
        """Whether the gate was passed: bwrap had made everything, and what failed later is the command's own."""
        unread = fcntl.ioctl(self._child_gate, termios.FIONREAD, b"\0" * 4)
        return self._released and int.from_bytes(unread, sys.byteorder) == 0

    def ended(self, seconds: float) -> bool:
        """Wait up to `seconds` for bwrap and process 1 to end."""
        end = time.monotonic() + seconds
        for descriptor in (self._monitor, self._first):
            left = max(0.0, end - time.monotonic())
            if descriptor >= 0 and not select.select([descriptor], [], [], left)[0]:
                return False
        return True

    def kill(self) -> None:
        """SIGKILL to process 1: the kernel then kills everything in its namespace before it is gone."""
        for descriptor in (self._first, self._monitor):
            if descriptor >= 0:
                try:
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                except ProcessLookupError:
                    continue

    def reap(self) -> int:
        """The exit code as bwrap passes it on (128 + n after signal n); only after `ended`. Sets `usage_s`."""
        if self._process.returncode is None:
            _, status, used = os.wait4(self._process.pid, 0)
            self._process.returncode = os.waitstatus_to_exitcode(status)
            self.usage_s = used.ru_utime + used.ru_stime
        code = self._process.returncode
        return 128 - code if code < 0 else code

    def close(self) -> None:
        """End and forget everything; safe at any state."""
        self.kill()
        if self._process.returncode is None:
            self.reap()
        for name in ("_info", "_gate", "_child_gate", "_monitor", "_first"):
            descriptor = getattr(self, name)
            if descriptor >= 0:
                os.close(descriptor)
                setattr(self, name, -1)

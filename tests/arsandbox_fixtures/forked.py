"""The console script as a process of its own that needs no imports any more: see fork_server.py.

`Popen` here is subprocess.Popen but for how the process comes to be: its pid, its streams, its signals and its wait
status are as real. Its parent is the server, so neither its CPU time nor its end is seen by wait() of this process.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from arsandbox_fixtures.fork_server import DISPOSITIONS

SERVER = Path(__file__).with_name("fork_server.py")
# Read as the interpreter or a module starts, which the server has done: who changes one of these gets a fresh process.
READ_EARLY = ("PYTHON", "LC_", "LANG", "LD_", "TZ", "OPENBLAS", "OMP_", "SSL_", "PYDANTIC_")


class _Server:
    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.environment = {name: value for name, value in os.environ.items() if name.startswith(READ_EARLY)}
        self._calls, self._lock, self.owner = ours, threading.Lock(), os.getpid()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(SERVER), str(theirs.fileno())],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=[theirs.fileno()],
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"}, cwd="/",
            )  # fmt: skip
        atexit.register(self._close)

    def _close(self) -> None:
        if self.owner == os.getpid():
            self._calls.close()
            self._process.wait(10)

    def ask(self, call: dict[str, Any], descriptors: Sequence[int]) -> None:
        text = json.dumps(call).encode() + b"\n"
        with self._lock:
            sent = socket.send_fds(self._calls, [text], descriptors)
            self._calls.sendall(text[sent:])


_server: _Server | None = None
_starting = threading.Lock()


def _the_server() -> _Server:
    global _server
    with _starting:
        if _server is None or _server.owner != os.getpid():
            _server = _Server()
        return _server


def can_start(environment: Mapping[str, str]) -> bool:
    """Whether a process with that environment would be the same if it were started afresh."""
    early = {name: value for name, value in environment.items() if name.startswith(READ_EARLY)}
    return early == _the_server().environment


class Popen(subprocess.Popen[str]):
    """`args` are the console script and its arguments; options as those of subprocess.Popen that command_line uses."""

    peak_rss = 0

    def _execute_child(
        self, args: Any, executable: Any, preexec_fn: Any, close_fds: Any, pass_fds: Any, cwd: Any, env: Any,
        startupinfo: Any, creationflags: Any, shell: Any, p2cread: int, p2cwrite: int, c2pread: int, c2pwrite: int,
        errread: int, errwrite: int, *rest: Any,
    ) -> None:  # fmt: skip
        umask = os.umask(0)
        os.umask(umask)
        call = {
            "arguments": [os.fspath(one) for one in args],
            "environment": dict(env),
            "directory": str(cwd or os.getcwd()),
            "umask": umask,
            "ignored": [int(n) for n in DISPOSITIONS if signal.getsignal(n) is signal.SIG_IGN],
        }
        status, theirs = os.pipe()
        try:
            _the_server().ask(call, [p2cread, c2pwrite, errwrite, theirs])
        finally:
            os.close(theirs)
            for one in (p2cread, c2pwrite, errwrite):
                os.close(one)
        self._status = open(status, "rb", buffering=0)  # noqa: SIM115 -- closed at the end of the process
        self._told = b""
        self._child_created = True
        said = self._line(block=True)
        assert said is not None, "the fork server is gone"
        self.pid = said["pid"]

    def _line(self, *, block: bool) -> dict[str, int] | None:
        """The next line that the server says; None: not yet."""
        os.set_blocking(self._status.fileno(), block)
        while b"\n" not in self._told:
            chunk = self._status.read(4096)
            if chunk is None:
                return None
            assert chunk, "the fork server is gone"
            self._told += chunk
        line, _, self._told = self._told.partition(b"\n")
        found: dict[str, int] = json.loads(line)
        return found

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        said = self._line(block=not wait_flags & os.WNOHANG)
        if said is None:
            return 0, 0
        self.peak_rss = said["peak_rss"]
        self._status.close()
        return self.pid, said["status"]

    def _internal_poll(self, _deadstate: int | None = None, *rest: Any) -> int | None:
        if self.returncode is None and self._waitpid_lock.acquire(False):  # type: ignore[attr-defined]
            try:
                if self.returncode is None:
                    pid, status = self._try_wait(os.WNOHANG)
                    if pid == self.pid:
                        self._handle_exitstatus(status)  # type: ignore[attr-defined]
            finally:
                self._waitpid_lock.release()  # type: ignore[attr-defined]
        return self.returncode

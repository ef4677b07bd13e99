"""Starts the command line without its imports: a program that has made them already forks a child for each call.

Run as `python fork_server.py FD` by forked.py, and by nothing else: FD is its end of a socket, over which each call
comes as a line of JSON with four file descriptors (the child's 0, 1 and 2, and a pipe that is told the child's pid
and, at its end, its wait status). It ends when nobody holds the other end any more. It imports nothing of the tests.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes  # noqa: F401 -- for the commands that load it late
import gc
import json
import os
import select
import signal
import socket
import sys
import tempfile
import threading
from typing import Any, NoReturn

# What most commands import once they know what they are asked for.
PRELOADED = (
    "arsandbox.cli.app", "arsandbox.cli.render", "arsandbox.sandbox.confirmation", "arsandbox.sandbox.doctor",
    "arsandbox.sandbox.evidence", "arsandbox.sandbox.hand_promotion", "arsandbox.sandbox.imaging",
    "arsandbox.sandbox.loop.once", "arsandbox.sandbox.loop.running", "arsandbox.sandbox.recovery",
    "arsandbox.sandbox.rerun", "arsandbox.sandbox.engines.docker", "arsandbox.sandbox.engines.embedded",
    "arsandbox.sandbox.engines.fake", "git", "rich.console", "rich.table", "pynvml",
)  # fmt: skip
DISPOSITIONS = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def _preload() -> None:
    import importlib

    os.environ["PYDANTIC_DISABLE_PLUGINS"] = "__all__"  # as main() does before the models are made
    for name in PRELOADED:
        importlib.import_module(name)
    from scipy import stats  # noqa: F401

    tempfile.tempdir = None
    assert threading.active_count() == 1, threading.enumerate()  # a fork would lose the others
    gc.collect()
    gc.freeze()


def _serve(calls: socket.socket) -> list[str]:
    """Fork for each call; returns in the children alone, with their arguments."""
    children: dict[int, int] = {}
    inner, outer = os.pipe()
    for end in (inner, outer):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(outer, warn_on_full_buffer=False)
    while True:
        ready, _, _ = select.select([calls.fileno(), inner], [], [])
        if inner in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(inner, 4096)
            for pid in list(children):
                if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                    _, status, usage = os.wait4(pid, 0)
                    _tell(children.pop(pid), {"status": status, "peak_rss": usage.ru_maxrss})
        if calls.fileno() not in ready:
            continue
        text, descriptors, _, _ = socket.recv_fds(calls, 1 << 20, 4)
        if not text:
            os._exit(0)
        while not text.endswith(b"\n"):
            text += calls.recv(1 << 20)
        call = json.loads(text)
        pid = os.fork()
        if pid == 0:
            return _become(call, descriptors)
        for one in descriptors[:3]:
            os.close(one)
        children[pid] = descriptors[3]
        _tell(descriptors[3], {"pid": pid}, close=False)


def _tell(descriptor: int, what: dict[str, int], *, close: bool = True) -> None:
    with contextlib.suppress(BrokenPipeError):  # whoever asked does not want to know any more
        os.write(descriptor, json.dumps(what).encode() + b"\n")
    if close:
        os.close(descriptor)


def _become(call: dict[str, Any], descriptors: list[int]) -> list[str]:
    """Make this process what a fresh one would be."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in DISPOSITIONS:
        ignored = int(number) in call["ignored"]
        default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN if ignored else default)
    for target, source in enumerate(descriptors[:3]):
        os.dup2(source, target)
    os.closerange(3, max(16, *descriptors, _highest()) + 1)
    os.environ.clear()
    os.environ.update(call["environment"])
    os.umask(call["umask"])
    os.chdir(call["directory"])
    return list(call["arguments"])


def _end(code: int) -> NoReturn:
    """As the interpreter ends, but that it does not take its modules apart: the pages of all are the server's."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            code = 120
    os._exit(code)


def _highest() -> int:
    return max(int(name) for name in os.listdir("/proc/self/fd"))


if __name__ == "__main__":
    for _number in DISPOSITIONS:  # a Ctrl-C is for pytest, which ends this program with its socket
        signal.signal(_number, signal.SIG_IGN)
    _calls = socket.socket(fileno=int(sys.argv[1]))
    _preload()
    sys.argv = _serve(_calls)
    del _calls
    from arsandbox.cli.app import main

    try:
        main()
    except SystemExit as error:
        if not isinstance(error.code, int):
            raise
        _end(error.code)

"""Ctrl-C, SIGTERM and SIGHUP as a KeyboardInterrupt that never leaves a lock of the standard library taken."""

from __future__ import annotations

import signal
import threading
from types import FrameType

# Raised in one of these, between a lock and the `with` that gives it back, it would keep the lock for good, and
# whatever cleans up after it would wait for ever (https://bugs.python.org/issue29988). None of them takes long.
_TAKING = {"__enter__", "__exit__", "_acquire_restore", "_release_save"}
_AGAIN_S = 0.001


def raise_interrupts() -> None:
    """Let those signals raise KeyboardInterrupt in the main thread, except where whoever started us ignores them.

    `nohup arsandbox loop` goes on when its terminal is closed. SIGALRM and the real-time interval timer are in use
    from then on.
    """
    signal.signal(signal.SIGALRM, _asked)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _asked)


def ignore_interrupts() -> None:
    """Let those signals do nothing more: the work is over, and what is left is to say how it ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # first: the one that comes twice
    for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _asked(number: int, frame: FrameType | None) -> None:
    # All frames: the handler itself may be the innermost one, where the timer was faster than its end.
    while frame is not None:
        if frame.f_globals is vars(threading) and frame.f_code.co_name in _TAKING:
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)
            return
        frame = frame.f_back
    raise KeyboardInterrupt

"""Waiting for what another process does, and a bound on what may block for ever."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

import pytest

_Found = TypeVar("_Found")
Within = Callable[[float], AbstractContextManager[None]]


def wait_for(condition: Callable[[], _Found | None], *, seconds: float = 30, what: str = "it") -> _Found:
    """The first true value of `condition`; fails the test after `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    pytest.fail(f"{what} did not happen within {seconds:g}s")


class Late(BaseException):
    """Raised again and again by the alarm, and no Exception, so that no handler on the way swallows it."""


@pytest.fixture
def within() -> Within:
    """`with within(2):` fails the test when the block takes longer, even when it blocks for ever."""

    @contextmanager
    def limit(seconds: float) -> Iterator[None]:
        def late(number: int, frame: object) -> None:
            raise Late

        before = signal.signal(signal.SIGALRM, late)
        remaining = signal.setitimer(signal.ITIMER_REAL, seconds, 0.5)
        try:
            yield
        except Late:
            raise AssertionError(f"still busy after {seconds} s") from None
        finally:
            signal.setitimer(signal.ITIMER_REAL, *remaining)
            signal.signal(signal.SIGALRM, before)

    return limit

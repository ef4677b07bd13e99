"""Questions to a Docker engine that is busy for a moment."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import requests
from docker.errors import APIError

from arsandbox.sandbox.engines.docker import sandbox


class _Busy:
    """An engine that answers `status` so often before it says what was asked for."""

    def __init__(self, status: int, times: int) -> None:
        self._status, self._left = status, times

    def inspect_container(self, identity: str) -> dict[str, Any]:
        if self._left:
            self._left -= 1
            response = requests.Response()
            response.status_code = self._status
            raise APIError("busy", response=response)
        return {"Id": identity}


def test_a_busy_engine_is_asked_for_the_state_again() -> None:
    assert sandbox._inspect(_Busy(500, 3), "x") == {"Id": "x"}


def test_a_refusal_is_not_asked_for_again() -> None:
    with pytest.raises(APIError):
        sandbox._inspect(_Busy(409, 1), "x")


def test_an_end_is_waited_for_once() -> None:
    """What waits returns at the end of its thread, or of its time, and never tries again."""
    end = threading.Event()
    waiter = threading.Thread(target=end.wait, daemon=True)
    assert sandbox._ended(waiter, 0.0)  # never started: there is nothing to wait for
    waiter.start()
    assert not sandbox._ended(waiter, 0.01)
    end.set()
    assert sandbox._ended(waiter, 5)
    assert not hasattr(sandbox._ended, "retry") and hasattr(sandbox._inspect, "retry")

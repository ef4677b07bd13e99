"""One connection to the Docker engine, and what its failures mean in one line each."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import docker
import requests.exceptions
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from tenacity import before_sleep_log, retry, retry_if_exception, stop_after_attempt, wait_exponential

from arsandbox.sandbox.errors import MachineError

__all__ = ["APIError", "ImageNotFound", "NotFound", "connect", "idempotent", "translated"]

_log = logging.getLogger(__name__)


@cache
def connect() -> docker.DockerClient:
    """The engine that `DOCKER_HOST` or the default socket names, answered once. Raises MachineError."""
    with translated("connect to Docker"):
        client = docker.from_env(timeout=120, max_pool_size=16)
        client.ping()
        return client


@contextmanager
def translated(purpose: str) -> Iterator[None]:
    """Turn the SDK's exceptions into MachineError naming `purpose`; NotFound passes through."""
    try:
        yield
    except NotFound:
        raise
    except APIError as error:
        raise MachineError(f"cannot {purpose}: {_explanation(error)}", hint="arsandbox doctor") from error
    except (DockerException, requests.exceptions.RequestException, OSError) as error:
        raise _unreachable(purpose, error) from error


def _explanation(error: APIError) -> str:
    text = str(error.explanation or error).strip().splitlines()
    return text[0] if text else type(error).__name__


def _unreachable(purpose: str, error: Exception) -> MachineError:
    causes = list(_causes(error))
    if any(isinstance(cause, PermissionError) for cause in causes):
        return MachineError(
            f"cannot {purpose}: no permission on the engine's socket",
            hint="sudo usermod -aG docker $USER, then log in again (that group equals root)",
        )
    if any(isinstance(cause, FileNotFoundError | ConnectionRefusedError) for cause in causes):
        return MachineError(
            f"cannot {purpose}: no Docker engine answers",
            hint="start it (sudo systemctl start docker) or install it (sudo apt-get install docker.io)",
        )
    return MachineError(f"cannot {purpose}: {error}", hint="arsandbox doctor")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The exception, what it was raised from, and exceptions that the HTTP libraries wrap as arguments."""
    pending: list[Any] = [error]
    seen: set[int] = set()
    while pending:
        current = pending.pop()
        if isinstance(current, BaseException) and id(current) not in seen:
            seen.add(id(current))
            yield current
            pending += [
                current.__cause__,
                current.__context__,
                *current.args,
                getattr(current, "reason", None),
            ]


def _passing(error: BaseException) -> bool:
    """Whether a later try may succeed: a busy engine, not a refusal."""
    if isinstance(error, APIError):
        return error.response is not None and error.response.status_code >= 500
    return isinstance(error, requests.exceptions.Timeout)


# Only around calls that may be repeated without harm (remove, kill, inspect, list).
idempotent = retry(
    retry=retry_if_exception(_passing),
    stop=stop_after_attempt(5),
    wait=wait_exponential(multiplier=0.05, max=1.0),
    before_sleep=before_sleep_log(_log, logging.DEBUG),
    reraise=True,
)

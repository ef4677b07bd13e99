"""The Docker engine seen apart from arsandbox's own code, and the connections of this process to it."""

from __future__ import annotations

import atexit
import functools
import gc
import hashlib
import os
import warnings
from pathlib import Path

import docker
from docker.models.containers import Container
from docker.models.volumes import Volume
from testcontainers.core.docker_client import DockerClient

from arsandbox.sandbox import host
from arsandbox.sandbox.engines.docker.client import connect
from arsandbox_fixtures.home import session_home

os.environ["TESTCONTAINERS_RYUK_DISABLED"] = "true"


@functools.cache
def docker_client() -> docker.DockerClient:
    """The engine, seen apart from arsandbox's own code."""
    client = DockerClient().client
    atexit.register(client.close)
    return client


def collect_quietly() -> None:
    """Collect what engine calls leave to the garbage collector, so that it is not blamed on a later test.

    test_engine.py has a test of its own for sockets that are left open.
    """
    enabled = gc.isenabled()
    gc.disable()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    if enabled:
        gc.enable()


def close_connections() -> None:
    """Close this process's connections to the engine."""
    collect_quietly()
    if connect.cache_info().currsize:
        connect().close()
        connect.cache_clear()


def home_label(home: Path) -> str:
    """The label filter of everything that belongs to the state directory `home`."""
    return f"{host.HOME_LABEL}={hashlib.sha256(os.fsencode(home.resolve())).hexdigest()[:16]}"


def containers(home: Path | None = None) -> list[Container]:
    """The containers of `home` (the session's by default), running or not."""
    return docker_client().containers.list(
        all=True, filters={"label": home_label(home or session_home())}, ignore_removed=True
    )


def volumes(home: Path | None = None) -> list[Volume]:
    """The volumes of `home`."""
    return docker_client().volumes.list(filters={"label": home_label(home or session_home())})

"""The Docker engine as the port has it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import docker

from arsandbox.sandbox.engines.docker.client import (
    APIError,
    ImageNotFound,
    NotFound,
    connect,
    idempotent,
    translated,
)
from arsandbox.sandbox.engines.docker.sandbox import DockerSandbox
from arsandbox.sandbox.engines.port import Sandbox, SandboxSpec
from arsandbox.sandbox.errors import MachineError
from arsandbox.sandbox.models import EngineInfo


class DockerEngine:
    """Sandboxes, images, sweep and probe on one Docker engine."""

    def __init__(self, client: docker.DockerClient) -> None:
        self._client = client

    def sandbox(self, spec: SandboxSpec) -> AbstractContextManager[Sandbox]:
        """See the port."""
        return DockerSandbox(self._client, spec)

    def has_image(self, digest: str) -> bool:
        """See the port."""
        try:
            with translated("look for an image"):
                self._client.images.get(digest)
        except ImageNotFound:
            return False
        return True

    def load_image(self, archive: Iterable[bytes]) -> str:
        """See the port."""
        with translated("load an image"):
            loaded = self._client.images.load(archive)  # type: ignore[arg-type] # requests streams iterables
        if len(loaded) != 1 or not loaded[0].id:
            raise MachineError(f"the engine loaded {len(loaded)} images from an archive of one")
        return str(loaded[0].id)

    def sweep(self, labels: dict[str, str]) -> list[str]:
        """See the port."""
        wanted = {"label": [f"{name}={value}" for name, value in sorted(labels.items())]}
        removed = []
        with translated("sweep what is left"):
            for found in self._client.api.containers(all=True, filters=wanted):
                _remove(self._client.api.remove_container, found["Id"], force=True, v=True)
                removed.append(f"container {found['Names'][0].lstrip('/')}")
            for found in self._client.api.volumes(filters=wanted)["Volumes"] or []:
                _remove(self._client.api.remove_volume, found["Name"], force=True)
                removed.append(f"volume {found['Name']}")
        return removed

    def labelled(self, label: str) -> set[str]:
        """See the port."""
        filters = {"label": label}
        with translated("list what is left"):
            rows = self._client.api.containers(all=True, filters=filters)
            rows += self._client.api.volumes(filters=filters)["Volumes"] or []
        return {row["Labels"][label] for row in rows}

    def info(self) -> EngineInfo:
        """See the port."""
        with translated("ask the engine what it is"):
            version = self._client.version()["Version"]
            runtime = self._client.info()["DefaultRuntime"]
        return EngineInfo(
            name="docker",
            version=version,
            runtime=runtime,
            isolation="container",
            privilege="root" if os.geteuid() == 0 else "socket",
        )


def open_engine() -> DockerEngine:
    """Connect to the engine. Raises MachineError with what to start or install."""
    return DockerEngine(connect())


@idempotent
def _remove(call: Any, identity: str, **options: bool) -> None:
    try:
        call(identity, **options)
    except NotFound:
        return
    except APIError as error:
        if error.response is not None and error.response.status_code == 409:
            return  # somebody else is removing it
        raise

"""The Docker engine as the port has it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import docker

from arsandbox.sandbox.engines.docker import exchange, gpus
from arsandbox.sandbox.engines.docker.client import (
    APIError,
    ImageNotFound,
    NotFound,
    connect,
    idempotent,
    translated,
)
from arsandbox.sandbox.engines.docker.sandbox import DockerSandbox
from arsandbox.sandbox.engines.port import EngineFacts, ImageFacts, Sandbox, SandboxSpec
from arsandbox.sandbox.errors import MachineError
from arsandbox.sandbox.models import EngineInfo, Guarantee, Guarantees, ImageRef

# The name under which gVisor's runtime is registered, by its own installer and by Debian's documentation.
GVISOR = "runsc"


class DockerEngine:
    """Sandboxes, images, sweep and probe on one Docker engine."""

    def __init__(self, client: docker.DockerClient, info: EngineInfo) -> None:
        self._client, self._info = client, info
        self._gpu_ways: dict[tuple[str, ...], str] = {}

    def sandbox(self, spec: SandboxSpec) -> AbstractContextManager[Sandbox]:
        """See the port."""
        way = self.offer_gpus(spec.image, spec.gpus, labels=spec.labels) if spec.gpus else ""
        return DockerSandbox(self._client, spec, self._info.runtime, way)

    def offer_gpus(self, image: ImageRef, uuids: Sequence[str], *, labels: Mapping[str, str]) -> str:
        """See the port. Each set of devices is tried once per image and process."""
        if self._info.runtime == GVISOR:
            raise MachineError("no GPU is granted under gVisor (runsc)", hint="leave --runtime out, or ask for no GPU")
        known = (image.digest, *uuids)
        if known not in self._gpu_ways:
            self._gpu_ways[known] = gpus.offered(
                self._client.api, image.digest, uuids, runtime=self._info.runtime, labels=labels
            )
        return self._gpu_ways[known]

    def find_image(self, name: str) -> ImageRef | None:
        """See the port: images are pinned in the catalogue."""
        return None

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

    def pull_image(self, reference: str) -> ImageFacts:
        """See the port."""
        return exchange.pull(self._client, reference)

    def export_image(self, digest: str) -> Iterator[bytes]:
        """See the port."""
        return exchange.export(self._client, digest)

    def derive_image(self, context: Path, arguments: dict[str, str]) -> ImageFacts:
        """See the port."""
        return exchange.derive(self._client, context, arguments)

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

    def with_runtime(self, name: str) -> DockerEngine:
        """See the port."""
        with translated("ask the engine for its runtimes"):
            known = sorted(self._client.info().get("Runtimes") or {})
        if name not in known:
            install = "sudo apt-get install runsc, then see Runtimes in docs/configuration.md"
            raise MachineError(
                f"--runtime {name}: this Docker engine has no such runtime, only {', '.join(known)}",
                hint=install if name == GVISOR else "docker info lists the runtimes",
            )
        guarantees = self._info.guarantees or Guarantees()
        gvisor = {"isolation": "gvisor", "guarantees": gvisor_guarantees(guarantees)} if name == GVISOR else {}
        return DockerEngine(self._client, self._info.model_copy(update={"runtime": name, **gvisor}))

    def facts(self) -> EngineFacts:
        """See the port."""
        with translated("ask the engine what it can do"):
            told = self._client.info()
        limits = {"memory": "MemoryLimit", "swap": "SwapLimit", "pids": "PidsLimit", "cpu": "CpuCfsQuota"}
        options = [option.split(",")[0] for option in told.get("SecurityOptions") or []]
        return EngineFacts(
            runtimes=tuple(sorted(told.get("Runtimes") or {})),
            seccomp="name=seccomp" in options,
            lacks=tuple(name for name, field in limits.items() if told.get(field) is False),
            cdi_directories=tuple(told.get("CDISpecDirs") or ()),
            data_directory=str(told.get("DockerRootDir") or ""),
        )

    def info(self) -> EngineInfo:
        """See the port."""
        return self._info


def gvisor_guarantees(of_runc: Guarantees) -> Guarantees:
    """What holds under runsc, whose kernel runs in the container's cgroup in the command's place.

    The pids cgroup counts its threads, not the command's processes one for one; that process 1 ends a sandbox
    whose controller is dead is not tested there; host sockets are not passed in, so there is no egress.
    """
    weaker = {
        "pids": Guarantee.BEST_EFFORT,
        "deadline_without_controller": Guarantee.BEST_EFFORT,
        "egress": Guarantee.NOT_OFFERED,
    }
    return of_runc.model_copy(update=weaker)


def open_engine() -> DockerEngine:
    """Connect to the engine. Raises MachineError with what to start or install, or why it cannot be used."""
    client = connect()
    with translated("ask the engine what it is"):
        version, facts = client.version(), client.info()
    _require_usable(client.api.base_url, version, facts)
    info = EngineInfo(
        name="docker",
        version=version["Version"],
        runtime=facts["DefaultRuntime"],
        isolation="container",
        privilege="root" if os.geteuid() == 0 else "socket",
        # Two ordinary users with the socket cannot see each other's uid leases (engines/uids.py).
        guarantees=Guarantees(
            own_uid=Guarantee.ENFORCED if os.geteuid() == 0 else Guarantee.BEST_EFFORT, egress=Guarantee.ENFORCED
        ),
    )
    return DockerEngine(client, info)


def _require_usable(address: str, version: dict[str, Any], facts: dict[str, Any]) -> None:
    """Refuse engines whose containers could not own, or not even see, the layers of this host."""
    if not address.startswith("http+docker://"):
        raise MachineError(
            f"the engine at {address} is on another machine: workspaces are directories of this one",
            hint="run arsandbox where the engine runs, and unset DOCKER_HOST",
        )
    if any("podman" in str(component.get("Name", "")).lower() for component in version.get("Components") or []):
        raise MachineError(
            "this is podman: it does not report out-of-memory kills reliably",
            hint="sudo apt-get install docker.io, and unset DOCKER_HOST",
        )
    for option in facts.get("SecurityOptions") or []:
        for kind in ("rootless", "userns"):
            if option.split(",")[0] == f"name={kind}":
                raise MachineError(
                    f"the engine maps user ids ({kind}): its containers could not own their workspace",
                    hint="use an engine without rootless mode and without userns-remap",
                )


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

"""A stage's GPUs from lease to return: what is asked of the machine first, what is found afterwards."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from arsandbox.sandbox import advisories
from arsandbox.sandbox.engines.port import Engine, GpuOffer
from arsandbox.sandbox.errors import MachineError
from arsandbox.sandbox.gpu import nvml
from arsandbox.sandbox.gpu.leases import LABEL, Lease, candidates
from arsandbox.sandbox.gpu.nvml import DeviceLostError
from arsandbox.sandbox.gpu.request import GpuRequest
from arsandbox.sandbox.gpu.sampling import GpuUsage, Sampler
from arsandbox.sandbox.models import Finding, ImageRef
from arsandbox.sandbox.quantities import format_size

# The driver gives a dead process's memory back within a second or two; a slow one gets this long.
_SETTLED_S = 10.0
_TOLERANCE = 64 * 1024**2


class Grant:
    """Leased devices, and what is seen of them while stages run on them in turn. `way` is how the engine gives them."""

    def __init__(self, lease: Lease, way: str, ceiling: int) -> None:
        self._lease, self.way, self._ceiling = lease, way, ceiling
        self._samplers: list[Sampler] = []
        self._between = ""

    @property
    def uuids(self) -> tuple[str, ...]:
        """Of the devices, sorted."""
        return self._lease.uuids

    @property
    def labels(self) -> dict[str, str]:
        """What the sandbox bears, so that nobody is granted its devices while it is there."""
        return self._lease.labels

    @property
    def over(self) -> str | None:
        """Why the stage must end now, in words, or None: it was seen above its ceiling."""
        return self._samplers[-1].over if self._samplers else None

    @contextmanager
    def sampled(self) -> Iterator[None]:
        """Sample while open, around one stage; what a stage before it used comes back first, so that it is not its."""
        if self._samplers:
            self._between = self._between or self._returned()
        sampler = Sampler(self._lease.devices, self._lease.baselines, self._ceiling)
        self._samplers.append(sampler)
        with sampler:
            yield

    def usage(self) -> GpuUsage:
        """What the stage, the last one, did to the devices. Raises MachineError where the driver could not be read."""
        sampler = self._samplers[-1]
        if sampler.problem is not None:
            raise MachineError(f"the GPUs could not be watched: {sampler.problem}", hint="nvidia-smi says more")
        return sampler.usage(self.way)

    def findings(self) -> list[Finding]:
        """What is wrong with the devices now that the stages' sandboxes are gone; waits for the memory to come back."""
        found = []
        lost = next((one.lost for one in self._samplers if one.lost is not None), None)
        if lost is not None:
            found.append(Finding(code="gpu_lost", detail=f"the driver lost a GPU: {lost}"))
        strangers = set[int]().union(*(one.strangers for one in self._samplers))
        if strangers:
            found.append(Finding(code="gpu_shared", detail=f"process {min(strangers)} of the host computed on it, too"))
        left = self._returned() or self._between
        return found + ([Finding(code="gpu_not_returned", detail=left)] if left else [])

    def _returned(self) -> str:
        """Wait for the devices to be as they were; in words what keeps them from it in the end, or nothing."""
        end = time.monotonic() + _SETTLED_S
        while (left := self._left()) and time.monotonic() < end:
            time.sleep(0.2)
        return left

    def _left(self) -> str:
        """What is left on the devices, in words; empty when they are as they were."""
        with nvml.session() as driver:
            for device in self._lease.devices:
                try:
                    reading = driver.read(device.uuid)
                except DeviceLostError as error:
                    return f"{device.uuid}: the driver does not answer for it ({error})"
                if reading.processes:
                    return f"{device.uuid}: process {reading.processes[0]} still computes on it"
                more = reading.memory_bytes - self._lease.baselines[device.uuid]
                if more > _TOLERANCE:
                    return f"{device.uuid}: {format_size(more)} of its memory did not come back"
        return ""


def require(request: GpuRequest, engine: Engine, image: ImageRef, *, labels: Mapping[str, str]) -> str:
    """How `engine` gives the devices that are asked for: it is tried in a small sandbox of `image`
    that bears `labels`.

    Raises MachineError with what is missing: driver, device, toolkit, engine.
    """
    offer = _offer(engine, request)
    chosen = require_devices(request)
    _require_fixed_toolkit()
    return offer.offer_gpus(image, chosen, labels=labels)


def require_devices(request: GpuRequest) -> tuple[str, ...]:
    """UUIDs that could serve the request, used or not. Raises MachineError where this machine never can."""
    with nvml.session() as driver:
        return tuple(device.uuid for device in candidates(request, driver.devices()))[: request.number]


@contextmanager
def granted(
    request: GpuRequest, engine: Engine, image: ImageRef, *, ceiling: int, labels: Mapping[str, str]
) -> Iterator[Grant]:
    """Lease the devices, at least one, until the context is left.

    `ceiling` is the most GPU memory in bytes that a stage may use on each. Raises MachineError as `require` does,
    and where the devices are not free.
    """
    offer = _offer(engine, request)
    _require_fixed_toolkit()
    with nvml.session() as driver:
        lease = Lease.take(request, driver, lambda: engine.labelled(LABEL))
    try:
        yield Grant(lease, offer.offer_gpus(image, lease.uuids, labels=labels), ceiling)
    finally:
        lease.release()


def _offer(engine: Engine, request: GpuRequest) -> GpuOffer:
    if not isinstance(engine, GpuOffer):
        hint = f"--engine docker, or {request.instead(0)}"
        raise MachineError(f"the {engine.info().name} engine grants no GPUs", hint=hint)
    return engine


def _require_fixed_toolkit() -> None:
    """Raises MachineError for a container toolkit with a hole through which a container takes the host over."""
    broken = advisories.toolkit_holes()  # no toolkit has none: CDI can do without, and that is tried
    if broken:
        raise MachineError(
            f"NVIDIA's container toolkit here has known holes ({'; '.join(one.cve for one in broken)}): "
            "no sandbox gets a GPU through it",
            hint=f"sudo apt-get install --only-upgrade nvidia-container-toolkit ({broken[-1].fixed[-1]} or later)",
        )

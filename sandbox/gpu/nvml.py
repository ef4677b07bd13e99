"""The NVIDIA driver's own word, through nvidia-ml-py: devices, memory, clocks, processes. The only importer of it.

NVML (docs.nvidia.com/deploy/nvml-api) counts its callers: each `session` opens and closes it once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, TypeVar

from arsandbox.sandbox.errors import MachineError
from arsandbox.sandbox.models import Model

_Answer = TypeVar("_Answer")
_INSTALL = "sudo apt-get install nvidia-driver, then restart the machine (docs.nvidia.com/datacenter/tesla says more)"
# nvmlClocksEventReasons: why a clock is lower than it could be. Idle and set by the user are no throttling.
_REASONS = {
    0x4: "power_cap",
    0x8: "hardware_slowdown",
    0x10: "sync_boost",
    0x20: "software_thermal",
    0x40: "hardware_thermal",
    0x80: "power_brake",
}


class Device(Model):
    """A GPU or a MIG device. `parts` are the MIG devices of a GPU that is divided: it cannot be used itself."""

    uuid: str
    name: str
    memory_bytes: int
    parent: str = ""
    divided: bool = False


class Reading(Model):
    """One device at one moment. What a device does not report (MIG: utilisation, clocks) is None."""

    memory_bytes: int
    utilisation: float | None = None
    clock_mhz: int | None = None
    throttled: tuple[str, ...] = ()
    processes: tuple[int, ...] = ()


class DeviceLostError(Exception):
    """The driver does not answer for a device any more; the message is the driver's."""


class Session:
    """An open connection to the driver."""

    def __init__(self, library: Any) -> None:
        self._nvml = library

    def driver(self) -> str:
        """The driver's version."""
        return str(self._nvml.nvmlSystemGetDriverVersion())

    def devices(self) -> tuple[Device, ...]:
        """All devices of this machine, in the driver's order; MIG devices follow the GPU that they are part of."""
        found: list[Device] = []
        for index in range(self._nvml.nvmlDeviceGetCount()):
            handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
            parts = self._parts(handle)
            whole = self._device(handle, divided=parts is not None)
            found.append(whole)
            found += [self._device(part, parent=whole.uuid) for part in parts or ()]
        return tuple(found)

    def read(self, uuid: str) -> Reading:
        """What the device `uuid` does now. Raises DeviceLostError."""
        try:
            handle = self._nvml.nvmlDeviceGetHandleByUUID(uuid)
            memory = int(self._nvml.nvmlDeviceGetMemoryInfo(handle).used)
            processes = tuple(int(one.pid) for one in self._nvml.nvmlDeviceGetComputeRunningProcesses(handle))
            rates = self._offered(lambda: self._nvml.nvmlDeviceGetUtilizationRates(handle))
            clock = self._offered(lambda: self._nvml.nvmlDeviceGetClockInfo(handle, self._nvml.NVML_CLOCK_SM))
            reasons = self._offered(lambda: self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)) or 0
        except self._nvml.NVMLError as error:
            raise DeviceLostError(str(error)) from error
        return Reading(
            memory_bytes=memory,
            utilisation=None if rates is None else rates.gpu / 100,
            clock_mhz=clock,
            throttled=tuple(name for bit, name in _REASONS.items() if reasons & bit),
            processes=processes,
        )

    def _parts(self, handle: Any) -> list[Any] | None:
        """The MIG devices of a GPU; None where it is not divided."""
        mode = self._offered(lambda: self._nvml.nvmlDeviceGetMigMode(handle))
        if not mode or mode[0] != self._nvml.NVML_DEVICE_MIG_ENABLE:
            return None
        parts = []
        for index in range(self._nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
            with contextlib.suppress(self._nvml.NVMLError_NotFound):  # places without an instance
                parts.append(self._nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index))
        return parts

    def _device(self, handle: Any, *, parent: str = "", divided: bool = False) -> Device:
        return Device(
            uuid=str(self._nvml.nvmlDeviceGetUUID(handle)),
            name=str(self._nvml.nvmlDeviceGetName(handle)),
            memory_bytes=int(self._nvml.nvmlDeviceGetMemoryInfo(handle).total),
            parent=parent,
            divided=divided,
        )

    def _offered(self, ask: Callable[[], _Answer]) -> _Answer | None:
        """The answer, or None where this device, or this driver, has none."""
        try:
            return ask()
        except (
            self._nvml.NVMLError_NotSupported,
            self._nvml.NVMLError_FunctionNotFound,
            self._nvml.NVMLError_InvalidArgument,  # MIG devices answer some questions so
        ):
            return None


@contextlib.contextmanager
def session() -> Iterator[Session]:
    """Open NVML. Raises MachineError saying what of the driver is missing, also for failures while it is used."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError_LibraryNotFound as error:
        raise MachineError("this machine has no NVIDIA driver (no libnvidia-ml.so.1)", hint=_INSTALL) from error
    except pynvml.NVMLError_DriverNotLoaded as error:
        raise MachineError("the NVIDIA driver is installed but not loaded", hint="sudo modprobe nvidia") from error
    except pynvml.NVMLError as error:
        raise MachineError(f"the NVIDIA driver does not answer: {error}", hint="nvidia-smi says more") from error
    try:
        yield Session(pynvml)
    except pynvml.NVMLError as error:
        raise MachineError(f"the NVIDIA driver failed: {error}", hint="nvidia-smi says more") from error
    finally:
        pynvml.nvmlShutdown()


@cache
def facts() -> dict[str, str]:
    """The driver's version and the devices' names, as a record's environment holds them; empty without a driver."""
    try:
        with session() as nvml:
            names = sorted({device.name for device in nvml.devices() if not device.parent})
            return {"driver": nvml.driver(), "gpu": ", ".join(names)} if names else {}
    except MachineError:
        return {}  # a machine without GPUs: there is nothing to say

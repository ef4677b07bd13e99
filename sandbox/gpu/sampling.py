"""What a run does to its GPUs, read from the driver twice a second by a thread of the host."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from pydantic import Field

from arsandbox.sandbox.engines import uids
from arsandbox.sandbox.gpu import nvml
from arsandbox.sandbox.gpu.nvml import Device, DeviceLostError, Reading
from arsandbox.sandbox.models import Model
from arsandbox.sandbox.quantities import format_size

INTERVAL_S = 0.5


class DeviceUsage(Model):
    """One device over one stage: bytes above the baseline that it had before, means over the samples."""

    uuid: str
    name: str
    memory_bytes: int
    baseline_memory_bytes: int
    peak_memory_bytes: int = 0
    mean_utilisation: float | None = None
    mean_clock_mhz: int | None = None
    least_clock_mhz: int | None = None
    throttled: dict[str, int] = Field(default_factory=dict)


class GpuUsage(Model):
    """`usage.gpu` of a record. `throttled` counts samples by reason; `way` is how the engine granted the devices."""

    devices: tuple[DeviceUsage, ...]
    way: str
    samples: int
    interval_s: float = INTERVAL_S


class Sampler:
    """Context manager: samples while it is open. `ceiling` is the most memory, in bytes, of each device."""

    def __init__(self, devices: Sequence[Device], baselines: Mapping[str, int], ceiling: int) -> None:
        self._devices, self._baselines, self._ceiling = devices, baselines, ceiling
        self._seen: dict[str, list[Reading]] = {device.uuid: [] for device in devices}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="gpu-sampler", daemon=True)
        self.over: str | None = None
        self.lost: str | None = None
        self.problem: Exception | None = None
        self.strangers: set[int] = set()

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def usage(self, way: str) -> GpuUsage:
        """What was seen so far."""
        return GpuUsage(
            devices=tuple(self._usage(device) for device in self._devices),
            way=way,
            samples=min(len(readings) for readings in self._seen.values()),
        )

    def _sample(self) -> None:
        try:
            with nvml.session() as driver:
                while True:
                    for device in self._devices:
                        self._look(device, driver.read(device.uuid))
                    if self._ended.wait(INTERVAL_S):
                        return
        except DeviceLostError as error:
            self.lost = str(error)
        except Exception as error:  # noqa: BLE001 - a thread has nobody to raise to: whoever asks for usage is told
            self.problem = error

    def _look(self, device: Device, reading: Reading) -> None:
        self._seen[device.uuid].append(reading)
        self.strangers.update(pid for pid in reading.processes if _is_strange(pid))
        used = reading.memory_bytes - self._baselines[device.uuid]
        if used > self._ceiling and self.over is None:
            self.over = (
                f"used {format_size(used)} of GPU memory on {device.uuid}; "
                f"the policy's ceiling is {format_size(self._ceiling)}"
            )

    def _usage(self, device: Device) -> DeviceUsage:
        readings, baseline = list(self._seen[device.uuid]), self._baselines[device.uuid]
        busy = [one.utilisation for one in readings if one.utilisation is not None]
        clocks = [one.clock_mhz for one in readings if one.clock_mhz is not None]
        throttled: dict[str, int] = {}
        for one in readings:
            for reason in one.throttled:
                throttled[reason] = throttled.get(reason, 0) + 1
        return DeviceUsage(
            uuid=device.uuid,
            name=device.name,
            memory_bytes=device.memory_bytes,
            baseline_memory_bytes=baseline,
            peak_memory_bytes=max((max(0, one.memory_bytes - baseline) for one in readings), default=0),
            mean_utilisation=round(sum(busy) / len(busy), 4) if busy else None,
            mean_clock_mhz=round(sum(clocks) / len(clocks)) if clocks else None,
            least_clock_mhz=min(clocks, default=None),
            throttled=throttled,
        )


def _is_strange(pid: int) -> bool:
    """Whether a process of this host is no sandbox's, by its user id."""
    try:
        return Path(f"/proc/{pid}").stat().st_uid not in uids.ALL
    except OSError:
        return False  # just gone: the next sample shows who stays

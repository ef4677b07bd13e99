"""Exclusive use of GPUs, by UUID: a lock a device, sorted, all or nothing.

The lock dies with its holder, but a container outlives a killed controller, and other users' locks cannot be
seen: so a device is only granted when no sandbox on the engine bears its label, and nobody computes on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from arsandbox.sandbox import state
from arsandbox.sandbox.errors import MachineError
from arsandbox.sandbox.gpu.nvml import Device, DeviceLostError, Session
from arsandbox.sandbox.gpu.request import GpuRequest

LABEL = "arsandbox.gpus"
# So much of a device's memory may be in use by what is no computation (a desktop), before it counts as busy.
_IDLE_SHARE = 0.25


class Lease:
    """Devices held until `release` or death."""

    def __init__(self, devices: tuple[Device, ...], baselines: dict[str, int], locks: list[state.Lock]) -> None:
        self.devices, self.baselines = devices, baselines
        self._locks = locks

    @property
    def uuids(self) -> tuple[str, ...]:
        """Of the devices, sorted."""
        return tuple(device.uuid for device in self.devices)

    @property
    def labels(self) -> dict[str, str]:
        """What a sandbox with these devices bears."""
        return {LABEL: ",".join(self.uuids)}

    @classmethod
    def take(cls, request: GpuRequest, nvml: Session, labelled: Callable[[], Iterable[str]]) -> Lease:
        """Lease what is asked for; `labelled` says the values of LABEL on anything that the engine holds now.

        It is asked with the device's lock held: what a holder that was killed meanwhile left there is then seen.
        Raises MachineError naming the devices that are not there, or who is in the way.
        """
        choice = candidates(request, nvml.devices())
        chosen: list[Device] = []
        baselines: dict[str, int] = {}
        locks: list[state.Lock] = []
        obstacles: list[str] = []
        try:
            for device in choice:
                if len(chosen) == request.number:
                    break
                lock = state.Lock.try_take(_place(device.uuid))
                obstacle = "another run has leased it"
                if lock is not None:
                    locks.append(lock)  # at once, so that it is given back whatever the questions raise
                    running = {uuid for value in labelled() for uuid in value.split(",")}
                    obstacle, baseline = _busy(device, nvml, running)
                    if not obstacle:
                        chosen.append(device)
                        baselines[device.uuid] = baseline
                        continue
                    locks.pop().close()
                obstacles.append(f"{device.uuid}: {obstacle}")
                if request.uuids:
                    break
        except BaseException:  # Ctrl-C too: what is held so far is given back, then the exception goes on
            _close(locks)
            raise
        if len(chosen) == request.number:
            return cls(tuple(chosen), baselines, locks)
        _close(locks)
        raise MachineError(
            f"{request.number} GPUs are asked for, but only {len(chosen)} of {len(choice)} are free "
            f"({'; '.join(obstacles)})",
            hint="wait for other runs, end what computes there (nvidia-smi), or: arsandbox gc",
        )

    def release(self) -> None:
        """Give them back."""
        _close(self._locks)
        self._locks = []


def candidates(request: GpuRequest, devices: Sequence[Device]) -> list[Device]:
    """The devices that may serve `request`, by UUID. Raises MachineError where it can never be served here."""
    if not request.uuids:
        whole = sorted((one for one in devices if not one.parent and not one.divided), key=lambda one: one.uuid)
        if len(whole) < request.count:
            divided = any(one.divided for one in devices)
            raise MachineError(
                f"{request.count} GPUs are asked for, but this machine has {len(whole)}"
                f"{' that are not divided into MIG devices' if divided else ''}",
                hint="name MIG devices by UUID (nvidia-smi -L)" if divided else request.instead(len(whole)),
            )
        return whole
    known = {device.uuid: device for device in devices}
    found = []
    for uuid in request.uuids:
        if uuid not in known:
            raise MachineError(f"--gpus {uuid}: this machine has no such device", hint="nvidia-smi -L lists them")
        if known[uuid].divided:
            raise MachineError(
                f"--gpus {uuid}: this GPU is divided into MIG devices", hint="name one of these (nvidia-smi -L)"
            )
        found.append(known[uuid])
    return found


def _busy(device: Device, nvml: Session, running: set[str]) -> tuple[str, int]:
    """(who is in the way, or nothing; the memory that is in use now, in bytes)."""
    if device.uuid in running:
        return "a sandbox that has it is still there", 0
    try:
        reading = nvml.read(device.uuid)
    except DeviceLostError as error:
        return f"the driver does not answer for it ({error})", 0
    if reading.processes:
        return f"process {reading.processes[0]} computes on it", 0
    if reading.memory_bytes > device.memory_bytes * _IDLE_SHARE:
        return f"{reading.memory_bytes / device.memory_bytes:.0%} of its memory is in use", 0
    return "", reading.memory_bytes


def _place(uuid: str) -> Path:
    return state.make_private(state.machine_locks() / "gpus") / uuid.replace("/", "_")


def _close(locks: list[state.Lock]) -> None:
    for lock in locks:
        lock.close()

"""GPUs through Docker: by the Container Device Interface or by NVIDIA's older hook, whichever this engine offers.

CDI comes first: the hook's worst holes (CVE-2024-0132) do not concern it. Which one works is tried with a small
container, never told from version numbers; the container also shows that exactly the leased devices are seen.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence

import docker
from docker.types import DeviceRequest, LogConfig

from arsandbox.sandbox.engines.docker.client import APIError, NotFound, translated
from arsandbox.sandbox.errors import MachineError

CDI, HOOK = "cdi", "hook"
_KIND = "nvidia.com/gpu"
_WAYS = (CDI, HOOK)
_LOOK = "import os, re; print(sum(bool(re.fullmatch('nvidia[0-9]+', name)) for name in os.listdir('/dev')))"
_LONGEST_S = 60

_TOOLKIT = "sudo apt-get install nvidia-container-toolkit && sudo systemctl restart docker"
_SPEC = "sudo nvidia-ctk cdi generate --device-name-strategy=uuid --output=/etc/cdi/nvidia.yaml"
# What the engine, the toolkit and runc say, in the order in which it is looked for: (their words, ours, what helps).
_ABSENT = "could not select device driver"
_MEANINGS = (
    ("unresolvable CDI devices", "its CDI specification does not name the device", _SPEC),
    (_ABSENT, "it has no NVIDIA container toolkit", _TOOLKIT),
    ("driver not loaded", "the NVIDIA driver is not loaded", "sudo modprobe nvidia"),
    ("libnvidia-ml.so.1", "the NVIDIA driver is not installed", "sudo apt-get install nvidia-driver"),
    ("unsatisfied condition", "the NVIDIA driver is too old for the image", "sudo apt-get install nvidia-driver"),
    ("unknown device", "the toolkit does not know the device", "nvidia-smi -L lists them; then run again"),
)


def device_request(way: str, uuids: Sequence[str]) -> DeviceRequest:
    """The engine's request for exactly these devices: never by number, which means the first ones."""
    if way == CDI:
        return DeviceRequest(driver="cdi", device_ids=[f"{_KIND}={uuid}" for uuid in uuids])
    return DeviceRequest(driver="nvidia", device_ids=list(uuids), capabilities=[["gpu"]])


def variables(way: str, uuids: Sequence[str]) -> dict[str, str]:
    """NVIDIA's variables, whatever the image says: the hook reads them, with CDI nobody does."""
    if way != HOOK or not uuids:
        return {"NVIDIA_VISIBLE_DEVICES": "void", "NVIDIA_DRIVER_CAPABILITIES": ""}
    return {"NVIDIA_VISIBLE_DEVICES": ",".join(uuids), "NVIDIA_DRIVER_CAPABILITIES": "compute,utility"}


def offered(api: docker.APIClient, image: str, uuids: Sequence[str], *, runtime: str, labels: Mapping[str, str]) -> str:
    """The first way by which a container of `image` gets the devices. Raises MachineError saying why none does."""
    said: dict[str, str] = {}
    for way in _WAYS:
        problem = _try(api, image, uuids, way, runtime, labels)
        if problem is None:
            return way
        said[way] = problem
    what, hint = _explained(said[CDI], said[HOOK])
    raise MachineError(f"the Docker engine gives no GPU: {what}", hint=hint)


def _explained(by_cdi: str, by_hook: str) -> tuple[str, str]:
    """What is wrong, and what helps. An engine without one of the ways says that it has no such driver."""
    what, hint = _meaning(by_hook)
    if _ABSENT not in by_hook or _ABSENT in by_cdi:
        return what, hint
    what, hint = _meaning(by_cdi)
    if hint == _SPEC and shutil.which("nvidia-ctk") is None:
        return f"{what}, and there is no NVIDIA container toolkit", _TOOLKIT
    return what, hint


def _meaning(said: str) -> tuple[str, str]:
    for words, meaning, hint in _MEANINGS:
        if words in said:
            return meaning, hint
    return said, "sudo journalctl -u docker says more"


def _try(
    api: docker.APIClient, image: str, uuids: Sequence[str], way: str, runtime: str, labels: Mapping[str, str]
) -> str | None:
    """None when a container sees the devices and no others, else what was said."""
    name = f"arsandbox-gpu-trial-{os.urandom(6).hex()}"
    config = api.create_host_config(
        network_mode="none",
        read_only=True,
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        mem_limit=256 * 1024**2,
        pids_limit=64,
        log_config=LogConfig(type="json-file"),  # the engine's default may be one that cannot be read
        device_requests=[device_request(way, uuids)],
    )
    try:
        with translated("create a container with a GPU"):
            api.create_container(
                image=image,
                name=name,
                entrypoint=["python3", "-I", "-S", "-c", _LOOK],
                command=[],
                user="65534:65534",
                environment=variables(way, uuids),
                labels=dict(labels),
                network_disabled=True,
                host_config={**config, "Runtime": runtime},
            )
    except NotFound as error:
        raise MachineError(f"the image {image[:19]} is not in the engine", hint="arsandbox image build") from error
    try:
        return _looked(api, name, uuids)
    except NotFound as error:
        message = "the container that tried a GPU was removed by somebody else"
        raise MachineError(message, hint="run again") from error
    finally:
        _remove(api, name)


def _looked(api: docker.APIClient, name: str, uuids: Sequence[str]) -> str | None:
    """Start the container; None when it sees the devices and no others, else what was said."""
    try:
        api.start(name)
    except NotFound:
        raise
    except APIError as error:
        return " ".join(str(error.explanation or error).split())
    with translated("try a GPU"):
        code = int(api.wait(name, timeout=_LONGEST_S)["StatusCode"])
        output = api.logs(name).decode("utf-8", "replace").strip()
    if code or not output.isdigit():
        return f"a container with it ended with {code}: {output[-200:]}"
    return _miscounted(int(output), uuids)


def _remove(api: docker.APIClient, name: str) -> None:
    try:
        with translated("remove the container that tried a GPU"):
            api.remove_container(name, force=True)
    except NotFound:
        return  # somebody else was faster


def _miscounted(seen: int, uuids: Sequence[str]) -> str | None:
    """What is wrong with the number of device nodes; MIG devices of one GPU share its node."""
    least = 1 if any(uuid.startswith("MIG-") for uuid in uuids) else len(uuids)
    return None if least <= seen <= len(uuids) else f"a container with {len(uuids)} GPUs sees {seen}"

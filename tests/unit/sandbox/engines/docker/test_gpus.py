"""What the Docker engine is asked for GPUs, and what its refusals mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from arsandbox.sandbox.engines.docker import gpus

NO_DRIVER = 'could not select device driver "nvidia" with capabilities: [[gpu]]'
NO_CDI = 'could not select device driver "cdi" with capabilities: []'
UNRESOLVABLE = "CDI device injection failed: unresolvable CDI devices nvidia.com/gpu=GPU-a"
A, B, MIG = "GPU-a", "GPU-b", "MIG-c"


def test_devices_are_asked_for_by_uuid_and_never_by_number() -> None:
    by_hook, by_cdi = gpus.device_request(gpus.HOOK, [A, MIG]), gpus.device_request(gpus.CDI, [A, MIG])
    assert by_hook["DeviceIDs"] == [A, MIG] and by_hook["Count"] == by_cdi["Count"] == 0
    assert (by_hook["Driver"], by_hook["Capabilities"]) == ("nvidia", [["gpu"]])
    assert (by_cdi["Driver"], by_cdi["DeviceIDs"]) == ("cdi", ["nvidia.com/gpu=GPU-a", "nvidia.com/gpu=MIG-c"])


def test_the_variables_never_say_more_than_the_lease() -> None:
    void = {"NVIDIA_VISIBLE_DEVICES": "void", "NVIDIA_DRIVER_CAPABILITIES": ""}
    assert gpus.variables("", ()) == gpus.variables(gpus.HOOK, ()) == gpus.variables(gpus.CDI, [A]) == void
    assert gpus.variables(gpus.HOOK, [A, B])["NVIDIA_VISIBLE_DEVICES"] == f"{A},{B}"


@pytest.mark.parametrize(
    ("by_cdi", "by_hook", "toolkit", "said", "helps"),
    [
        (NO_CDI, NO_DRIVER, False, "no NVIDIA container toolkit", "install nvidia-container-toolkit"),
        (
            UNRESOLVABLE,
            NO_DRIVER,
            False,
            "does not name the device, and there is no",
            "install nvidia-container-toolkit",
        ),
        (UNRESOLVABLE, NO_DRIVER, True, "does not name the device", "cdi generate --device-name-strategy=uuid"),
        (UNRESOLVABLE, "nvml error: driver not loaded", True, "not loaded", "modprobe nvidia"),
        (NO_CDI, "load library failed: libnvidia-ml.so.1: cannot open", True, "not installed", "nvidia-driver"),
        (NO_CDI, "unsatisfied condition: cuda>=12.8", True, "too old", "nvidia-driver"),
        (NO_CDI, "device error: GPU-a: unknown device", True, "does not know the device", "nvidia-smi -L"),
        (NO_CDI, "something new", True, "something new", "journalctl"),
        ("a container with 1 GPUs sees 2", NO_DRIVER, True, "sees 2", "journalctl"),
    ],
)
def test_refusals_become_one_line(
    by_cdi: str, by_hook: str, toolkit: bool, said: str, helps: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if toolkit:
        (tmp_path / "nvidia-ctk").write_text("#!/bin/sh\n")
        (tmp_path / "nvidia-ctk").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    what, hint = gpus._explained(by_cdi, by_hook)
    assert said in what and helps in hint


def test_more_or_fewer_nodes_than_devices_are_a_refusal() -> None:
    assert gpus._miscounted(1, [A]) is None and gpus._miscounted(2, [A, B]) is None
    assert gpus._miscounted(1, [MIG, "MIG-d"]) is None  # of one GPU
    for seen, uuids in ((0, [A]), (2, [A]), (1, [A, B]), (0, [MIG]), (2, [MIG])):
        assert gpus._miscounted(seen, uuids) == f"a container with {len(uuids)} GPUs sees {seen}"

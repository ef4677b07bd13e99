"""Requests, leases, sampling and returns, with the real nvidia-ml-py over a stand-in libnvidia-ml.so.1."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arsandbox.sandbox import advisories, host
from arsandbox.sandbox.engines import uids
from arsandbox.sandbox.engines.fake import FakeEngine
from arsandbox.sandbox.errors import MachineError, RefusedError, UsageError
from arsandbox.sandbox.gpu import grant as granting
from arsandbox.sandbox.gpu import nvml
from arsandbox.sandbox.gpu.grant import granted
from arsandbox.sandbox.gpu.leases import LABEL, Lease
from arsandbox.sandbox.gpu.request import GpuRequest, default_for, parse
from arsandbox.sandbox.gpu.sampling import DeviceUsage, GpuUsage
from arsandbox.sandbox.models import ImageRef, Usage
from arsandbox.sandbox.record import Record
from arsandbox.sandbox.results_table import results_tsv
from arsandbox.sandbox.settings import Options, resolve
from arsandbox_fixtures.fake_loop import train
from arsandbox_fixtures.nvidia import GIB, UUIDS, Driver, Gpu

A, B, C = UUIDS
MIG = "MIG-11111111-0000-0000-0000-000000000000"
IMAGE = ImageRef(name="cuda12", digest="sha256:" + "0" * 64)


def take(request: GpuRequest, *labelled: str) -> Lease:
    with nvml.session() as open_driver:
        return Lease.take(request, open_driver, lambda: labelled)


def grant(request: GpuRequest, engine: FakeEngine | None = None, ceiling: int = 2**53) -> Any:
    return granted(request, engine or FakeEngine(), IMAGE, ceiling=ceiling, labels={})


def wait_for(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def sampled_anew(held: Any) -> None:
    """Wait until the sampler has seen what the driver says from now on."""
    seen = held.usage().samples
    wait_for(lambda: held.usage().samples >= seen + 2)


# --- what is asked for ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("none", GpuRequest()),
        ("0", GpuRequest()),
        ("2", GpuRequest(count=2)),
        (f"{B},{A}", GpuRequest(uuids=(A, B))),
        (MIG, GpuRequest(uuids=(MIG,))),
    ],
)
def test_requests(text: str, expected: GpuRequest) -> None:
    assert parse(text, what="--gpus") == expected
    assert parse(str(expected), what="--gpus") == expected


@pytest.mark.parametrize("text", ["all", "-1", "", "0,1", f"{A},{A}", "GPU-a b", "1.5", f"{A};{B}"])
def test_bad_requests_name_the_option_and_an_example(text: str) -> None:
    with pytest.raises(UsageError, match="--gpus") as refused:
        parse(text, what="--gpus")
    assert "nvidia-smi -L" in refused.value.hint


def test_cuda_images_ask_for_one_and_others_for_none() -> None:
    assert [default_for(name).number for name in ("cuda12", "cuda-mine", "cpu", "mine")] == [1, 1, 0, 0]


def test_the_policy_caps_what_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from arsandbox.sandbox.config import parse as config

    def asked(text: str, **options: Any) -> int:
        settings = resolve(config(text, "x"), Options(**options))
        assert settings.gpus.number <= settings.policy.gpus
        return settings.gpus.number

    assert asked("") == asked("", policy="gpu") == asked("[policy]\ngpus = 4") == 0
    assert asked("gpus = 2") == asked("", gpus=f"{A},{B}") == asked(f"gpus = ['{A}', '{B}']") == 2
    assert asked("gpus = 2", gpus="none") == asked("image = 'cuda12'", gpus="none") == 0
    assert asked("image = 'cuda12'") == asked("gpus = 'none'", gpus="1") == 1
    with pytest.raises(RefusedError, match="--gpus asks for 2, but --policy gpu allows only 1"):
        asked("", policy="gpu", gpus="2")
    with pytest.raises(RefusedError, match=r"image cuda12 .*asks for 1, but --policy strict allows only 0"):
        asked("image = 'cuda12'", policy="strict")
    owner = tmp_path / "owner.toml"
    owner.write_text("gpus = 1")
    monkeypatch.setenv("ARSANDBOX_POLICY", str(owner))
    with pytest.raises(RefusedError, match=r"gpus of the project asks for 2.*owner\.toml\) allows only 1"):
        asked("gpus = 2")
    evaluating = resolve(config("gpus = 1", "x"), Options()).policies
    assert {name for name, held in evaluating.items() if held.policy.gpus} == {"train"}


# --- leases ---


def test_a_lease_excludes_others_and_is_all_or_nothing(driver: Driver) -> None:
    first = take(GpuRequest(uuids=(A,)))
    with pytest.raises(MachineError, match=f"only 0 of 1 are free .*{A}: another run has leased it"):
        take(GpuRequest(uuids=(A,)))
    with pytest.raises(MachineError, match="2 GPUs are asked for, but only 1 of 2 are free"):
        take(GpuRequest(count=2))
    second = take(GpuRequest(count=1))  # B was given back
    assert (first.uuids, second.uuids) == ((A,), (B,))
    first.release()
    second.release()
    both = take(GpuRequest(count=2))
    assert both.uuids == (A, B) and both.labels == {LABEL: f"{A},{B}"}
    both.release()


def test_a_lease_dies_with_its_holder(driver: Driver, nvml_directory: Path, tmp_path: Path) -> None:
    program = (
        "import sys, time\nfrom arsandbox.sandbox import state\nfrom arsandbox.sandbox.gpu import nvml\n"
        "from arsandbox.sandbox.gpu.leases import Lease\nfrom arsandbox.sandbox.gpu.request import GpuRequest\n"
        "from pathlib import Path\nstate.machine_locks = lambda: Path(sys.argv[1])\n"
        "with nvml.session() as driver:\n    lease = Lease.take(GpuRequest(count=2), driver, tuple)\n"
        "print('leased', flush=True)\ntime.sleep(60)\n"
    )
    environment = {**os.environ, "LD_LIBRARY_PATH": str(nvml_directory)}
    command = [sys.executable, "-c", program, str(tmp_path / "locks")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "leased\n"
        with pytest.raises(MachineError, match="another run has leased it"):
            take(GpuRequest(count=1))
        holder.kill()
    take(GpuRequest(count=2)).release()


def test_labels_are_asked_for_with_the_lock_held_and_it_is_given_back_whatever_they_raise(driver: Driver) -> None:
    """A controller that is killed between our question and our lock leaves a sandbox that must be seen."""

    def held_meanwhile() -> list[str]:
        with pytest.raises(MachineError, match="another run has leased it"):
            take(GpuRequest(uuids=(A,)))
        return [A]

    def dead() -> list[str]:
        raise MachineError("the engine went away")

    with nvml.session() as session:
        with pytest.raises(MachineError, match="a sandbox that has it is still there"):
            Lease.take(GpuRequest(uuids=(A,)), session, held_meanwhile)
        with pytest.raises(MachineError, match="went away") as kept:  # its traceback holds the frame, and so the lock
            Lease.take(GpuRequest(uuids=(A,)), session, dead)
    take(GpuRequest(uuids=(A,))).release()
    assert kept.value.exit_code == 4


def test_no_device_is_granted_that_a_living_sandbox_bears_or_that_is_busy(driver: Driver) -> None:
    with pytest.raises(MachineError, match="a sandbox that has it is still there") as refused:
        take(GpuRequest(uuids=(A,)), f"{A},{B}")
    assert "arsandbox gc" in refused.value.hint
    driver.tell(Gpu(A, pid=os.getpid()), Gpu(B, used=30 * GIB), Gpu(C))
    assert take(GpuRequest(count=1)).uuids == (C,)
    with pytest.raises(MachineError, match=rf"{A}: process {os.getpid()} computes on it; {B}: 38% of its memory"):
        take(GpuRequest(count=3))


def test_devices_that_are_not_there(driver: Driver) -> None:
    with pytest.raises(MachineError, match="3 GPUs are asked for, but this machine has 2") as refused:
        take(GpuRequest(count=3))
    assert refused.value.hint == "--gpus 2"
    with pytest.raises(MachineError, match=f"--gpus {C}: this machine has no such device"):
        take(GpuRequest(uuids=(C,)))


def test_mig_devices_are_leased_by_uuid_and_their_gpu_never(driver: Driver) -> None:
    driver.tell(Gpu(A), Gpu(MIG, total=10 * GIB, parent=A, name="NVIDIA H100 MIG 1g.10gb"), Gpu(B))
    lease = take(GpuRequest(uuids=(MIG,)))
    assert lease.uuids == (MIG,) and lease.devices[0].parent == A and lease.devices[0].memory_bytes == 10 * GIB
    assert take(GpuRequest(count=1)).uuids == (B,)
    with pytest.raises(MachineError, match="divided into MIG devices"):
        take(GpuRequest(uuids=(A,)))
    with pytest.raises(MachineError, match="2 GPUs are asked for, but this machine has 1 that are not divided"):
        take(GpuRequest(count=2))
    with nvml.session() as open_driver:
        reading = open_driver.read(MIG)
    assert (reading.utilisation, reading.clock_mhz, reading.throttled) == (None, None, ())


# --- a stage with devices ---


def test_usage_is_sampled_above_the_baseline(driver: Driver) -> None:
    with grant(GpuRequest(count=2)) as held:
        with held.sampled():
            driver.tell(Gpu(A, used=GIB // 2 + 3 * GIB, utilisation=90, clock=1200, reasons=0x44), Gpu(B))
            wait_for(lambda: held.usage().devices[0].peak_memory_bytes == 3 * GIB)
            driver.tell(Gpu(A), Gpu(B))
        usage = held.usage()
        assert held.findings() == []
    first, second = usage.devices
    assert (first.uuid, first.name, first.memory_bytes) == (A, "NVIDIA H100 80GB HBM3", 80 * GIB)
    assert (first.baseline_memory_bytes, first.peak_memory_bytes) == (GIB // 2, 3 * GIB)
    assert first.least_clock_mhz == 1200 and set(first.throttled) == {"power_cap", "hardware_thermal"}
    assert 0 < (first.mean_utilisation or 0) <= 0.9
    assert second.peak_memory_bytes == 0 and second.throttled == {} and second.mean_clock_mhz == 1980
    assert usage.way == "fake" and usage.samples >= 1


def test_more_memory_than_the_ceiling_is_a_reason_to_end(driver: Driver) -> None:
    with grant(GpuRequest(uuids=(A,)), ceiling=2 * GIB) as held, held.sampled():
        driver.tell(Gpu(A, used=GIB // 2 + 2 * GIB))
        sampled_anew(held)
        assert held.over is None
        driver.tell(Gpu(A, used=GIB // 2 + 2 * GIB + 1))
        wait_for(lambda: held.over is not None)
        assert "the policy's ceiling is 2.0 GiB" in held.over


def test_memory_that_does_not_come_back_is_a_finding(driver: Driver) -> None:
    with grant(GpuRequest(uuids=(A,))) as held:
        driver.tell(Gpu(A, used=GIB // 2 + 100 * 1024**2))
        (found,) = held.findings()
        assert found.code == "gpu_not_returned" and "100.0 MiB of its memory did not come back" in found.detail
        driver.tell(Gpu(A, pid=1234567))
        (found,) = held.findings()
        assert "process 1234567 still computes on it" in found.detail
        threading.Timer(0.1, driver.tell, [Gpu(A)]).start()
        assert held.findings() == []  # a slow driver gets a moment


def test_a_stranger_on_the_device_is_a_finding_and_a_sandbox_is_none(driver: Driver) -> None:
    with grant(GpuRequest(uuids=(A,))) as held:
        with held.sampled():
            driver.tell(Gpu(A, pid=os.getpid()))
            sampled_anew(held)
            driver.tell(Gpu(A))
        assert [found.code for found in held.findings()] == ["gpu_shared"]
    if os.geteuid() == 0:
        own = subprocess.Popen(["sleep", "60"], user=uids.ALL[0])
        try:
            with grant(GpuRequest(uuids=(A,))) as held:
                with held.sampled():
                    driver.tell(Gpu(A, pid=own.pid))
                    sampled_anew(held)
                    driver.tell(Gpu(A))
                assert held.findings() == []
        finally:
            own.kill()
            own.wait()


def test_a_lost_device_is_a_finding(driver: Driver) -> None:
    with grant(GpuRequest(uuids=(A,))) as held:
        with held.sampled():
            sampled_anew(held)
            driver.tell(Gpu(B))
            wait_for(lambda: held._samplers[-1].lost)
            driver.tell(Gpu(A), Gpu(B))
        assert [found.code for found in held.findings()] == ["gpu_lost"]
        assert held.usage().samples >= 1


# --- machines that cannot ---


def test_a_machine_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STANDIN_NVML", raising=False)
    with pytest.raises(MachineError, match="driver") as refused, grant(GpuRequest(count=1)):
        pass
    assert refused.value.hint
    nvml.facts.cache_clear()
    assert nvml.facts() == {}


@pytest.mark.parametrize(("version", "named"), [("1.17.7", "CVE-2025-23266"), ("1.16.1", "CVE-2024-0132")])
def test_a_toolkit_with_a_known_hole_gets_no_gpu(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, version: str, named: str
) -> None:
    monkeypatch.setattr(advisories, "toolkit_version", lambda: (version, None))
    with pytest.raises(MachineError, match=rf"known holes .*{named}") as refused:
        granting.require(GpuRequest(count=1), FakeEngine(), IMAGE, labels={})
    assert "1.17.8 or later" in refused.value.hint
    monkeypatch.setattr(advisories, "toolkit_version", lambda: ("1.17.8", None))
    assert granting.require(GpuRequest(count=1), FakeEngine(), IMAGE, labels={}) == "fake"


def test_a_record_knows_the_hardware(driver: Driver) -> None:
    driver.tell(Gpu(A), Gpu(MIG, parent=A), Gpu(B, name="NVIDIA L4"))
    found = host.environment()
    assert (found["gpu"], found["driver"]) == ("NVIDIA H100 80GB HBM3, NVIDIA L4", "570.86.15")


# --- a loop, and its records ---


@pytest.mark.parametrize(("parallel", "devices"), [(1, (A,)), (2, (A, B))])
def test_a_loop_with_as_many_devices_as_trainings_leases_them_in_turns(
    driver: Driver, fake_loop: Callable[..., Any], parallel: int, devices: tuple[str, ...]
) -> None:
    driver.tell(*map(Gpu, devices))
    # Processors enough that the next training may begin while the one before is still read back.
    made = fake_loop(config="[measurement]\npin = false\n[limits]\ncpus = 0.25\n")
    repository = made.made
    repository.write({"arsandbox.toml": "gpus = 1\n" + (repository.path / "arsandbox.toml").read_text()})
    repository.commit("a GPU for each run")
    made.offer({str(n): train(extra=float(n)) for n in range(1, 7)} | {"7": train(9.0)})
    lock, busy, together = threading.Lock(), [0], []

    def running(number: int) -> None:
        with lock:
            busy[0] += 1
            together.append(busy[0])
        time.sleep(0.05)
        with lock:
            busy[0] -= 1

    made.running = running
    engine = made.engine()
    records = made.rounds(parallel=parallel, engine=engine)
    assert len(records) == 7 and max(together) <= parallel
    assert {spec.gpus for spec in engine.specs} <= {(uuid,) for uuid in devices}
    assert all(spec.labels[LABEL] == spec.gpus[0] for spec in engine.specs)
    assert all(len(record.usage.gpu["devices"]) == 1 and record.findings == () for record in records)
    assert {record.policy.effective["asked_gpus"] for record in records} == {"1"}
    made.check(over=True)


def test_a_pending_result_is_confirmed_with_the_devices_that_it_had(
    driver: Driver, fake_loop: Callable[..., Any]
) -> None:
    made = fake_loop(rule="quick", noise=0.05, config="[measurement]\npin = false\n")
    repository = made.made
    repository.write({"arsandbox.toml": "gpus = 2\n" + (repository.path / "arsandbox.toml").read_text()})
    repository.commit("two GPUs for each run")
    made.offer({"1": train(8.0)})
    engine = made.engine()
    (final,) = made.rounds(engine=engine)
    assert final.promotion is not None and final.confirms is not None
    assert {spec.gpus for spec in engine.specs} == {(A, B)}
    made.check(over=True)


def test_the_results_table_tells_the_memory_of_the_gpus(make_record: Callable[..., Record]) -> None:
    used = DeviceUsage(
        uuid=A, name="NVIDIA L4", memory_bytes=24 * GIB, baseline_memory_bytes=0, peak_memory_bytes=5 * GIB // 2
    )
    on_gpu = GpuUsage(devices=(used, used), way="cdi", samples=1).model_dump(mode="json")
    for gpu, told in (({}, "3.0"), (on_gpu, "5.0")):
        record = make_record(usage=Usage(peak_memory_bytes=3 * GIB, gpu=gpu))
        assert results_tsv([record]).splitlines()[1].split("\t")[2] == told

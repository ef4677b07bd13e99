"""GPU grants at the boundary, without a GPU: a real dockerd with a recording stand-in for NVIDIA's runtime hook.

The real nvidia-ml-py asks a stand-in libnvidia-ml.so.1 (both stand-ins are in arsandbox_fixtures/nvidia.py).

The hook injects nodes that are /dev/null by another name: what is shown is what the runtime is asked for and what a
sandbox sees of it, who is refused, and what a run leaves. That CUDA works then is shown on GPU machines alone.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import pytest

from arsandbox.sandbox import state
from arsandbox_fixtures.command_line import arsandbox
from arsandbox_fixtures.daemon import CAN_START_A_DAEMON, private_daemon
from arsandbox_fixtures.home import remove_home, session_home
from arsandbox_fixtures.nvidia import GIB, Driver, Gpu, hook
from arsandbox_fixtures.task import CONFIG, EVALUATE, answering
from arsandbox_fixtures.waiting import wait_for

pytestmark = [pytest.mark.engine, *CAN_START_A_DAEMON]

# Leases are of the whole machine: names that no other test run has.
A, B = (f"GPU-{os.urandom(4).hex()}-{'0000-' * 3}{'0' * 12}" for _ in "ab")
SEEN = """
import os, json
print("SEEN", json.dumps({"nodes": sorted(n for n in os.listdir("/dev") if "nvidia" in n),
                          "env": {k: v for k, v in os.environ.items() if "NVIDIA" in k or "CUDA_V" in k}}), flush=True)
"""
# A model that knows nothing, asked on a GPU.
SERVE = f"""{SEEN}
import numpy as np
from arsandbox_box import serve

serve(lambda histories, last: np.full((len(histories), last, 256), -np.log(256.0), "f4"))
"""
ASKED = CONFIG.replace(
    'command = ["python", "evaluate.py"]', 'gpus = 1\ninterface = "lm"\nserve = ["python", "serve.py"]'
)
ASKED += '[evaluate.lm]\ntext = "heldout/text"\ncontext = 16\n'


@dataclass
class Machine:
    """A machine with the stand-ins: its directory, its daemon, its driver."""

    place: Path
    env: dict[str, str]
    client: docker.DockerClient
    driver: Driver

    def calls(self) -> list[dict[str, Any]]:
        """What the hook was asked for since the last time."""
        file = self.place / "calls"
        lines = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        return [json.loads(line) for line in lines]

    def toolkit(self, version: str) -> None:
        """Let `nvidia-ctk --version` report this version."""
        program = self.place / "nvidia-ctk"
        program.write_text(f"#!/bin/sh\necho 'NVIDIA Container Toolkit CLI version {version}'\n")
        program.chmod(0o755)


@pytest.fixture(scope="module")
def daemon(home: Path) -> Iterator[tuple[Path, docker.DockerClient]]:
    """A dockerd of this module's own, with the recording hook in its PATH and the image `cpu`."""
    place = Path(tempfile.mkdtemp(prefix="ars-gpu-"))
    hook(place)
    with private_daemon(place, {}) as client:
        yield place, client
    for uuid in (A, B):
        (state.machine_locks() / "gpus" / uuid).unlink(missing_ok=True)


@pytest.fixture
def machine(daemon: tuple[Path, docker.DockerClient], nvml_directory: Path, tmp_path: Path) -> Iterator[Machine]:
    place, client = daemon
    driver = Driver(tmp_path / "driver")
    driver.tell(Gpu(A), Gpu(B))
    env = {
        "DOCKER_HOST": f"unix://{place}/docker.sock",
        "LD_LIBRARY_PATH": str(nvml_directory),
        "STANDIN_NVML": str(driver.file),
        "PATH": f"{place}:{os.environ['PATH']}",
    }
    found = Machine(place, env, client, driver)
    found.toolkit("1.17.8")
    found.calls()
    yield found
    (place / "tells").unlink(missing_ok=True)
    assert not client.containers.list(all=True)


def ready(project: Any, machine: Machine, before: str = SEEN, **files: str) -> Any:
    task = project({"train.py": answering(10.0, before=before), **files})
    task.env |= machine.env
    return task


def seen_of(task: Any, identity: str, *options: str) -> dict[str, Any]:
    line = next(line for line in task.cli("logs", identity, *options).out.splitlines() if line.startswith("SEEN "))
    found = json.loads(line.removeprefix("SEEN "))
    assert isinstance(found, dict)
    return found


def test_exactly_the_leased_device_reaches_the_runtime_and_the_sandbox(project: Any, machine: Machine) -> None:
    task = ready(project, machine)
    done = task.run("--json", "--gpus", B)
    assert done.code == 0, done
    record = done.record
    asked = machine.calls()
    assert len(asked) == 2, asked  # it was tried, then the training stage: the evaluation has none
    for call in asked:
        assert call["arguments"] == ["prestart"] and call["readonly"] and call["user"]["uid"] >= 61000
        assert set(call["env"]) == {f"NVIDIA_VISIBLE_DEVICES={B}", "NVIDIA_DRIVER_CAPABILITIES=compute,utility"}
    seen = seen_of(task, record["id"])
    assert seen["nodes"] == ["nvidia0", "nvidiactl"]
    assert seen["env"] == {"NVIDIA_VISIBLE_DEVICES": B, "NVIDIA_DRIVER_CAPABILITIES": "compute,utility"}
    (used,) = record["usage"]["gpu"]["devices"]
    assert (used["uuid"], record["usage"]["gpu"]["way"]) == (B, "hook")
    assert used["baseline_memory_bytes"] == GIB // 2 and used["peak_memory_bytes"] == 0
    assert record["environment"]["gpu"] == "NVIDIA H100 80GB HBM3" and record["environment"]["driver"] == "570.86.15"
    assert record["policy"]["effective"]["gpus"] == 1 and record["policy"]["effective"]["asked_gpus"] == B
    shown = task.cli("show", record["id"]).out
    assert "NVIDIA H100 80GB HBM3" in shown and B in shown, shown
    assert [stage["usage"]["gpu"] for stage in record["stages"] if stage["stage"] == "evaluate"] == [{}]


@pytest.mark.group("engines")
def test_several_devices_for_one_run_and_none_without_a_grant(project: Any, machine: Machine) -> None:
    task = ready(project, machine)
    done = task.run("--json", "--gpus", "2")
    assert done.code == 0 and len(done.record["usage"]["gpu"]["devices"]) == 2, done
    assert seen_of(task, done.record["id"])["nodes"] == ["nvidia0", "nvidia1", "nvidiactl"]
    machine.calls()
    done = task.run("--json", "--commit", "HEAD")
    assert done.code == 0 and done.record["usage"]["gpu"] == {} and not machine.calls(), done
    seen = seen_of(task, done.record["id"])
    assert seen == {"nodes": [], "env": {"NVIDIA_VISIBLE_DEVICES": "void", "NVIDIA_DRIVER_CAPABILITIES": ""}}


def test_a_lease_dies_with_its_controller_but_not_while_its_sandbox_lives(project: Any, machine: Machine) -> None:
    task = ready(project, machine, before="import time; time.sleep(15)")
    first = task.start("--json", "--gpus", A)
    wait_for(lambda: _training(machine), what="the start of the training")
    refused = task.run("--gpus", A)
    assert refused.code == 4 and f"{A}: another run has leased it" in refused.err, refused
    first.process.kill()
    first.wait()
    elsewhere = project(home=Path(tempfile.mkdtemp(prefix="ars-")))
    try:
        shutil.copy(session_home() / "images.json", elsewhere.home / "images.json")
        elsewhere.env |= machine.env
        refused = elsewhere.run("--gpus", A)
        assert refused.code == 4 and "a sandbox that has it is still there" in refused.err, refused
        assert "arsandbox gc" in refused.err
        swept = arsandbox("gc", env=task.env)
        assert swept.code == 0 and "container" in swept.out, swept
        assert elsewhere.run("--gpus", A).code == 0
    finally:
        remove_home(elsewhere.home)


def _training(machine: Machine) -> bool:
    return any("-train-" in str(one.name) for one in machine.client.containers.list())


def test_more_memory_than_the_policy_allows_ends_the_run_as_vram(project: Any, machine: Machine) -> None:
    config = CONFIG + 'vram = "8g"\n'
    task = ready(project, machine, before="import time; time.sleep(30)", **{"arsandbox.toml": config})
    began = time.monotonic()
    running = task.start("--json", "--gpus", A)
    wait_for(lambda: _training(machine), what="the start of the training")
    machine.driver.tell(Gpu(A, used=9 * GIB), Gpu(B))
    wait_for(lambda: not _training(machine), what="the end of the training", seconds=15)
    machine.driver.tell(Gpu(A), Gpu(B))
    done = running.wait()
    assert done.code == 1 and time.monotonic() - began < 25, done
    record = done.record
    assert record["verdict"] == "vram" and "the policy's ceiling is 8.0 GiB" in record["reason"]
    assert record["usage"]["gpu"]["devices"][0]["peak_memory_bytes"] == 9 * GIB - GIB // 2
    assert record["findings"] == []


def test_the_doctor_tries_the_very_request_of_a_run(home: Path, machine: Machine) -> None:
    def rows(**env: str) -> dict[str, dict[str, str]]:
        done = arsandbox("doctor", "--gpu", "--json", env=machine.env | env)
        found = {row["name"]: row for row in json.loads(done.out)}
        assert (done.code == 4) == any(row["status"] == "missing" for row in found.values()), done
        return found

    found = rows()
    assert found["grant"]["status"] == "ok" and "given a GPU by hook" in found["grant"]["detail"]
    assert found["gpu"]["detail"].startswith("driver 570.86.15: NVIDIA H100 80GB HBM3 80.0 GiB")
    (asked,) = machine.calls()
    assert set(asked["env"]) == {f"NVIDIA_VISIBLE_DEVICES={min(A, B)}", "NVIDIA_DRIVER_CAPABILITIES=compute,utility"}
    (machine.place / "tells").write_text("nvidia-container-cli: initialization error: nvml error: driver not loaded")
    machine.toolkit("1.17.3")
    found = rows()
    assert found["toolkit"]["status"] == found["grant"]["status"] == "missing"
    assert "1.17.8 or later" in found["toolkit"]["fix"]
    found = rows(STANDIN_NVML="")
    assert found["gpu"]["fix"] == "sudo modprobe nvidia" and found["grant"]["status"] == "missing"


@pytest.mark.group("engines")
@pytest.mark.parametrize(
    ("tells", "said", "helps"),
    [
        ("nvidia-container-cli: initialization error: nvml error: driver not loaded", "not loaded", "modprobe nvidia"),
        ("nvidia-container-cli: requirement error: unsatisfied condition: cuda>=12.8", "too old", "nvidia-driver"),
    ],
)
def test_what_the_toolkit_says_becomes_one_line(
    project: Any, machine: Machine, tells: str, said: str, helps: str
) -> None:
    (machine.place / "tells").write_text(tells)
    done = ready(project, machine).run("--gpus", "1")
    lines = done.err.strip().splitlines()
    assert done.code == 4 and said in done.err and helps in done.err and len(lines) <= 2, done


def test_an_old_toolkit_is_refused_before_anything_runs(project: Any, machine: Machine) -> None:
    machine.toolkit("1.17.3")
    done = ready(project, machine).run("--gpus", "1")
    assert done.code == 4 and "CVE-2025-23266" in done.err and "1.17.8 or later" in done.err, done
    assert not machine.calls()


def test_machines_that_cannot_say_so_in_one_line(project: Any, machine: Machine) -> None:
    task = ready(project, machine)
    for changed, said, helps in (
        ({"STANDIN_NVML": ""}, "driver is installed but not loaded", "modprobe nvidia"),
        ({"DOCKER_HOST": os.environ.get("DOCKER_HOST", "")}, "no NVIDIA container toolkit", "nvidia-container-toolkit"),
        ({"DOCKER_HOST": f"unix://{machine.place}/none.sock"}, "no Docker engine answers", "systemctl start docker"),
    ):
        done = arsandbox("run", "--repo", task.path, "--gpus", "1", env={**task.env, **changed})
        lines = done.err.strip().splitlines()
        assert done.code == 4 and said in done.err and helps in done.err and len(lines) <= 2, done
    done = task.run("--gpus", "1", "--engine", "embedded")
    assert done.code == 4 and "the embedded engine grants no GPUs" in done.err, done


def test_the_evaluation_gets_exactly_its_own_device_and_training_without_one_none(
    project: Any, machine: Machine
) -> None:
    config = CONFIG.replace("[evaluate]\n", "[evaluate]\ngpus = 1\n")
    task = ready(project, machine, **{"arsandbox.toml": config, "evaluate.py": SEEN + EVALUATE})
    refused = task.run("--engine", "embedded")
    assert refused.code == 4 and "the embedded engine grants no GPUs" in refused.err, refused
    assert "[evaluate] gpus = 0" in refused.err and not task.cli("history", "--json").out.strip("[]\n")
    refused = task.run("--gpus", "none")
    assert refused.code == 2 and "the evaluation asks for 1" in refused.err, refused
    assert not machine.calls()

    done = task.run("--json")
    assert done.code == 0, done
    record = done.record
    asked = machine.calls()
    assert len(asked) == 2, asked  # it was tried, then the evaluation
    (device,) = [one["uuid"] for one in record["stages"][1]["usage"]["gpu"]["devices"]]
    for call in asked:
        assert set(call["env"]) == {f"NVIDIA_VISIBLE_DEVICES={device}", "NVIDIA_DRIVER_CAPABILITIES=compute,utility"}
    assert record["usage"]["gpu"] == {} and record["findings"] == []
    assert seen_of(task, record["id"]) == {
        "nodes": [], "env": {"NVIDIA_VISIBLE_DEVICES": "void", "NVIDIA_DRIVER_CAPABILITIES": ""},
    }  # fmt: skip
    assert seen_of(task, record["id"], "--stage", "evaluate")["nodes"] == ["nvidia0", "nvidiactl"]


@pytest.mark.group("engines")
def test_both_model_boxes_of_an_audit_get_the_device_and_the_scorer_none(project: Any, machine: Machine) -> None:
    task = ready(project, machine, **{"arsandbox.toml": ASKED, "serve.py": SERVE, "heldout/text": "text " * 200})
    done = task.run("--json", "--audit")
    assert done.code == 0 and (done.record["verdict"], done.record["trust"]) == ("baseline", "L4"), done
    asked = machine.calls()
    assert len(asked) == 3, asked  # it was tried, then a box each
    assert len({tuple(sorted(call["env"])) for call in asked}) == 1
    used = {stage["stage"]: len(stage["usage"]["gpu"].get("devices", ())) for stage in done.record["stages"]}
    assert used == {"train": 0, "score": 0, "model": 1}
    kept = next(task.home.glob(f"repos/*/experiments/{done.record['id']}"))
    for number in (1, 2):
        (line,) = [one for one in (kept / f"model-{number}.log").read_text().splitlines() if one.startswith("SEEN ")]
        assert json.loads(line.removeprefix("SEEN "))["nodes"] == ["nvidia0", "nvidiactl"]
    audited = task.cli("audit", done.record["id"], "--json")
    assert audited.code == 0 and audited.record["trust"] == "L4" and len(machine.calls()) == 3, audited

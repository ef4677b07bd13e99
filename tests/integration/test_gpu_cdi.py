"""GPU grants by CDI, at the boundary: a real dockerd of version 25 or later, and a specification with harmless nodes.

The nodes are /dev/null by another name: that CUDA works through NVIDIA's own specification, GPU machines alone show.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from arsandbox.sandbox import state
from arsandbox_fixtures.daemon import CAN_START_A_DAEMON, private_daemon
from arsandbox_fixtures.nvidia import Driver, Gpu
from arsandbox_fixtures.task import answering

A, B = (f"GPU-{os.urandom(4).hex()}-{'0000-' * 3}{'0' * 12}" for _ in "ab")


def _version() -> int:
    if shutil.which("dockerd") is None:
        return 0
    said = subprocess.run(["dockerd", "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"version (\d+)", said)
    return int(found[1]) if found else 0


VERSION = _version()
pytestmark = [
    pytest.mark.engine,
    *CAN_START_A_DAEMON,
    pytest.mark.skipif(0 < VERSION < 25, reason=f"dockerd {VERSION} has no CDI: 25 or later has"),
]


@pytest.fixture
def env(home: Path, nvml_directory: Path, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a machine with two GPUs that a CDI specification names, and no hook."""
    place = Path(tempfile.mkdtemp(prefix="ars-cdi-"))
    devices = [
        {
            "name": uuid,
            "containerEdits": {
                "deviceNodes": [{"path": f"/dev/nvidia{number}", "hostPath": "/dev/null"}],
                "env": ["NVIDIA_VISIBLE_DEVICES=void"],
            },
        }
        for number, uuid in enumerate((A, B))
    ]
    (place / "cdi").mkdir()
    specification = {"cdiVersion": "0.5.0", "kind": "nvidia.com/gpu", "devices": devices}
    (place / "cdi" / "nvidia.json").write_text(json.dumps(specification))
    configuration = {"cdi-spec-dirs": [str(place / "cdi")], "features": {"cdi": True}}
    driver = Driver(tmp_path / "driver")
    driver.tell(Gpu(A), Gpu(B))
    with private_daemon(place, configuration):
        yield {
            "DOCKER_HOST": f"unix://{place}/docker.sock",
            "LD_LIBRARY_PATH": str(nvml_directory),
            "STANDIN_NVML": str(driver.file),
        }
    (state.machine_locks() / "gpus" / B).unlink(missing_ok=True)


def test_the_leased_device_comes_by_cdi(project: Any, env: dict[str, str]) -> None:
    before = """
    import os
    print("SEEN", sorted(n for n in os.listdir("/dev") if "nvidia" in n), os.environ["NVIDIA_VISIBLE_DEVICES"])
    """
    task = project({"train.py": answering(10.0, before=before)})
    task.env |= env
    done = task.run("--json", "--gpus", B)
    assert done.code == 0 and done.record["usage"]["gpu"]["way"] == "cdi", done
    assert "SEEN ['nvidia1'] void" in task.cli("logs", done.record["id"]).out
    missing = Gpu(f"GPU-{os.urandom(4).hex()}")
    Driver(Path(env["STANDIN_NVML"])).tell(missing)
    done = task.run("--gpus", missing.uuid)
    assert done.code == 4 and "specification does not name the device" in done.err, done
    assert "apt-get install nvidia-container-toolkit" in done.err
    place = Path(env["DOCKER_HOST"].removeprefix("unix://")).parent
    (place / "nvidia-ctk").write_text("#!/bin/sh\necho 'NVIDIA Container Toolkit CLI version 1.17.8'\n")
    (place / "nvidia-ctk").chmod(0o755)
    task.env["PATH"] = f"{place}:{os.environ['PATH']}"
    done = task.run("--gpus", missing.uuid)
    assert done.code == 4 and "nvidia-ctk cdi generate --device-name-strategy=uuid" in done.err, done

"""A Docker engine of a test's own."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker
import pytest

from arsandbox.sandbox.engines.docker.engine import DockerEngine
from arsandbox.sandbox.models import EngineInfo
from arsandbox_fixtures.docker_engine import collect_quietly
from arsandbox_fixtures.image import build_cpu
from arsandbox_fixtures.leftovers import mounts_below
from arsandbox_fixtures.waiting import wait_for

CAN_START_A_DAEMON = (
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a dockerd"),
    pytest.mark.skipif(shutil.which("dockerd") is None, reason="there is no dockerd to start"),
)


@contextmanager
def private_daemon(place: Path, configuration: dict[str, Any]) -> Iterator[docker.DockerClient]:
    """A dockerd with the programs in `place` first in its PATH, and the image `cpu`; `place` is removed at the end."""
    (place / "daemon.json").write_text(json.dumps(configuration))
    name = f"arsandbox-{os.urandom(6).hex()}"
    command = [
        "dockerd", "--data-root", f"{place}/data", "--exec-root", f"{place}/exec", "--pidfile", f"{place}/pid",
        "--host", f"unix://{place}/docker.sock", "--config-file", f"{place}/daemon.json",
        "--containerd-namespace", name, "--containerd-plugins-namespace", f"{name}-plugins",
        "--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false",
    ]  # fmt: skip
    if "--oom-score-adjust" in subprocess.run(["dockerd", "--help"], capture_output=True, text=True, check=True).stdout:
        command += ["--oom-score-adjust", "0"]
    environment = {**os.environ, "PATH": f"{place}:{os.environ['PATH']}"}
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        wait_for(lambda: _answers(place / "docker.sock"), seconds=60, what=f"a dockerd ({place}/log)")
        client = docker.DockerClient(base_url=f"unix://{place}/docker.sock", timeout=60)
        info = EngineInfo(name="docker", version="0", runtime="runc", isolation="container", privilege="root")
        build_cpu(DockerEngine(client, info).load_image)
        collect_quietly()
        yield client
        client.close()
    finally:
        process.terminate()
        process.wait(60)
        for point in reversed(mounts_below(place)):
            subprocess.run(["umount", "-l", point], check=True)
        shutil.rmtree(place)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        return connection.connect_ex(str(path)) == 0

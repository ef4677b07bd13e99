"""The workspace overlay for a controller without root: everything privileged happens in a helper.

The upper layer is a sized tmpfs volume; a helper container of the sandbox's own image holds it, owns
its directories, and answers questions by running workspace/upper.py inside (isolated mode, no
network, three capabilities). The tmpfs counts against the sandbox's memory: that is the price of no
root. Needs Linux 6.6 (user xattrs on tmpfs).
"""

from __future__ import annotations

import inspect
import json
import os
import platform
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import docker
from docker.types import LogConfig, Mount

from arsandbox.policies.model import Limits
from arsandbox.sandbox.engines.docker.client import NotFound, idempotent, translated
from arsandbox.sandbox.engines.port import Collected, SandboxSpec
from arsandbox.sandbox.errors import MachineError
from arsandbox.sandbox.models import ChangeSet
from arsandbox.sandbox.workspace import upper as reading
from arsandbox.sandbox.workspace.overlay import Space, overlay_options

OLDEST_KERNEL = (6, 6)
_MAKE = (
    "import os,sys\n"
    "for name in ('upper', 'work'):\n"
    "    os.mkdir('/layer/' + name, 0o755)\n"
    "    os.chown('/layer/' + name, int(sys.argv[1]), int(sys.argv[1]))\n"
)
_SPACE = (
    "import json,os;s=os.statvfs('/layer');print(json.dumps([s.f_blocks,s.f_bfree,s.f_bavail,s.f_frsize,s.f_favail]))"
)
_GIVE = (
    "import os,sys\n"
    "for root, directories, names in os.walk('/out'):\n"
    "    for name in [*directories, *names]:\n"
    "        os.lchown(os.path.join(root, name), int(sys.argv[1]), int(sys.argv[2]))\n"
)


class HelperWorkspace:
    """An upper layer in a tmpfs volume, reached through a helper container (needs the socket alone)."""

    def __init__(self, client: docker.DockerClient, spec: SandboxSpec, name: str, uid: int) -> None:
        self._api, self._spec, self._uid = client.api, spec, uid
        self._volume, self._container = f"{name}-layer", ""
        self._out = spec.scratch / "collected"

    def create(self) -> dict[str, str]:
        """Make the volume, start the helper; returns the options of the overlay volume."""
        _require_kernel()
        spec = self._spec
        self._out.mkdir()
        with translated("create the workspace's layer"):
            volume = self._api.create_volume(
                self._volume, driver="local", driver_opts=_tmpfs(spec.limits), labels=spec.labels
            )
            created = self._api.create_container(
                image=spec.image.digest,
                entrypoint=["python3", "-I", "-c", f"import time; time.sleep({spec.deadline_s + 3600:.0f})"],
                command=[],
                name=self._volume,
                user="0:0",
                labels=spec.labels,
                network_disabled=True,
                host_config=self._host_config(),
            )
            self._container = created["Id"]
            self._api.start(self._container)
        self._execute(_MAKE, str(self._uid))
        mountpoint = Path(volume["Mountpoint"])
        return {
            "type": "overlay",
            "device": "overlay",
            "o": overlay_options(spec.layers, mountpoint / "upper", mountpoint / "work"),
        }

    def space(self) -> Space | None:
        """How full the layer is, by one command in the helper (tens of milliseconds)."""
        blocks, free, available, size, inodes = json.loads(self._execute(_SPACE))
        return Space((blocks - free) * size, available * size < 64 * 1024 or inodes <= 1)

    def watched_space(self) -> Space | None:
        """None: asking several times a second would cost more than the run."""
        return None

    def changes(self) -> ChangeSet:
        """Scan the upper layer inside the helper."""
        lowers = [f"/lower/{number}" for number in range(len(self._spec.layers))]
        answer = self._ask({"do": "scan", "upper": "/layer/upper", "lowers": lowers})
        return ChangeSet.model_validate(answer)

    def collect(self, paths: Sequence[str], target: Path, *, most_bytes: int, most_files: int) -> Collected:
        """Copy declared paths out inside the helper, then take them over."""
        request = {"do": "collect", "upper": "/layer/upper", "target": "/out", "paths": list(paths)}
        answer = self._ask({**request, "bytes": most_bytes, "files": most_files})
        self._execute(_GIVE, str(os.getuid()), str(os.getgid()))
        for entry in self._out.iterdir():
            entry.rename(target / entry.name)
        return Collected(files=answer["files"], refused=tuple(answer["refused"]))

    def remove(self) -> None:
        """Remove helper and volume; safe to call at any state."""
        try:
            _remove(self._api.remove_container, self._volume, v=True)
            _remove(self._api.remove_volume, self._volume)
        finally:
            shutil.rmtree(self._spec.scratch, ignore_errors=True)

    def _host_config(self) -> dict[str, Any]:
        layers = enumerate(self._spec.layers)
        config: dict[str, Any] = self._api.create_host_config(
            mounts=[
                Mount("/layer", self._volume, type="volume", no_copy=True),
                Mount("/out", str(self._out), type="bind"),
                *(Mount(f"/lower/{number}", str(path), type="bind", read_only=True) for number, path in layers),
            ],
            read_only=True,
            network_mode="none",
            cap_drop=["ALL"],
            cap_add=["CHOWN", "DAC_OVERRIDE", "FOWNER"],
            security_opt=["no-new-privileges"],
            ipc_mode="private",
            mem_limit=512 * 1024**2,
            memswap_limit=512 * 1024**2,
            pids_limit=32,
            log_config=LogConfig(type="none"),
        )
        return config

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self._execute(inspect.getsource(reading), json.dumps(request)))
        return answer

    def _execute(self, source: str, *arguments: str) -> bytes:
        with translated("ask the workspace's helper"):
            created = self._api.exec_create(
                self._container, ["python3", "-I", "-c", source, *arguments], stdout=True, stderr=True, user="0:0"
            )
            output, errors = self._api.exec_start(created["Id"], demux=True)
            code = self._api.exec_inspect(created["Id"])["ExitCode"]
        if code != 0:
            lines = (errors or b"no message").decode(errors="replace").strip().splitlines()
            raise MachineError(f"the workspace's helper failed: {lines[-1]}", hint="arsandbox doctor")
        return output or b""


def _tmpfs(limits: Limits) -> dict[str, str]:
    options = f"size={limits.disk_bytes},nr_inodes={limits.disk_inodes},mode=0755,nosuid,nodev"
    return {"type": "tmpfs", "device": "tmpfs", "o": options}


def _require_kernel() -> None:
    found = re.match(r"(\d+)\.(\d+)", platform.release())
    if found is None or (int(found[1]), int(found[2])) < OLDEST_KERNEL:
        raise MachineError(
            f"without root the disk quota needs Linux 6.6 or later; this is {platform.release()}",
            hint="run arsandbox as root (sudo), which works on any supported kernel",
        )


@idempotent
def _remove(call: Any, identity: str, **options: bool) -> None:
    try:
        with translated("remove the workspace's layer"):
            call(identity, force=True, **options)
    except NotFound:
        return

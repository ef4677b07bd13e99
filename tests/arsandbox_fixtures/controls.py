"""Positive controls: the docker engine's request with one protection switched off.

Nothing of this exists in arsandbox itself: the request is changed on its way to the engine, here, in tests.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import docker
from docker.types import Mount

Request = dict[str, Any]
ROOT = "0:0"


def _options(request: Request, without: str) -> None:
    kept = [one for one in request["host_config"]["SecurityOpt"] if not one.startswith(without)]
    request["host_config"]["SecurityOpt"] = kept


def capabilities(request: Request, place: Path) -> None:
    request["host_config"]["CapDrop"] = []


def no_new_privs(request: Request, place: Path) -> None:
    _options(request, "no-new-privileges")
    request["host_config"]["SecurityOpt"].append("no-new-privileges:false")


def seccomp(request: Request, place: Path) -> None:
    _options(request, "seccomp")
    request["host_config"]["SecurityOpt"].append("seccomp=unconfined")


def user(request: Request, place: Path) -> None:
    request["user"] = ROOT
    request["host_config"]["CapDrop"] = []


def privileged(request: Request, place: Path) -> None:
    """Root with every capability that an attack is about; `Privileged` itself asks for more than a CI machine has."""
    user(request, place)
    names = "SYS_ADMIN NET_RAW NET_ADMIN SYS_CHROOT MKNOD DAC_READ_SEARCH DAC_OVERRIDE SYSLOG SYS_PTRACE SYS_RAWIO"
    request["host_config"].update({
        "CapAdd": names.split(), "SecurityOpt": ["seccomp=unconfined", "apparmor=unconfined"],
        "ReadonlyPaths": [], "MaskedPaths": [], "DeviceCgroupRules": ["a *:* rwm"],
    })  # fmt: skip
    request["host_config"]["Ulimits"] = []


def cgroups(request: Request, place: Path) -> None:
    user(request, place)
    request["host_config"]["Mounts"].append(Mount("/sys/fs/cgroup", "/sys/fs/cgroup", type="bind"))


def init(request: Request, place: Path) -> None:
    request["entrypoint"], request["command"] = [], request["command"][1:]


def pid_namespace(request: Request, place: Path) -> None:
    request["host_config"]["PidMode"] = "host"


def root_filesystem(request: Request, place: Path) -> None:
    user(request, place)
    request["host_config"]["ReadonlyRootfs"] = False


def mount_flags(request: Request, place: Path) -> None:
    request["host_config"]["Tmpfs"] = {"/tmp": "rw,exec,suid,dev,mode=1777,size=4m"}


def _bind(request: Request, target: str, source: Path | str, **options: Any) -> None:
    request["host_config"]["Mounts"].append(Mount(target, str(source), type="bind", read_only=True, **options))


def host_directory(request: Request, place: Path) -> None:
    for name in (".git/HEAD", ".aws/credentials"):
        (place / name).parent.mkdir(parents=True)
        (place / name).write_text("x")
    _bind(request, "/home", place)


def shared_mount(request: Request, place: Path) -> None:
    for arguments in (["--bind", str(place), str(place)], ["--make-shared", str(place)]):
        subprocess.run(["mount", *arguments], check=True)
    _bind(request, "/mnt", place, propagation="rshared")


def engine_socket(request: Request, place: Path) -> None:
    user(request, place)
    path = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://")
    _bind(request, "/run/docker.sock", path)


def environment(request: Request, place: Path) -> None:
    request["environment"] = [*request["environment"], "API_TOKEN=secret"]


def masked(request: Request, place: Path) -> None:
    request["host_config"].update({"MaskedPaths": [], "ReadonlyPaths": []})


def core(request: Request, place: Path) -> None:
    kept = [one for one in request["host_config"]["Ulimits"] if one["Name"] != "core"]
    request["host_config"]["Ulimits"] = [*kept, {"Name": "core", "Soft": -1, "Hard": -1}]


def network(request: Request, place: Path) -> None:
    request["network_disabled"] = False
    request["host_config"]["NetworkMode"] = "host"
    del request["hostname"]


def _device(request: Request, name: str) -> None:
    device = {"PathOnHost": "/dev/null", "PathInContainer": name, "CgroupPermissions": "rwm"}
    request["host_config"]["Devices"] = [device]


def gpu(request: Request, place: Path) -> None:
    _device(request, "/dev/nvidia0")


def device(request: Request, place: Path) -> None:
    _device(request, "/dev/mem")


def leftovers(request: Request, place: Path) -> None:
    (place / "mark").write_text("x")
    tmpfs = request["host_config"]["Tmpfs"]
    request["host_config"]["Tmpfs"] = {path: options for path, options in tmpfs.items() if path != "/tmp"}
    _bind(request, "/tmp", place)


CONTROLS: dict[str, Callable[[Request, Path], None]] = {
    function.__name__: function
    for function in (
        capabilities, no_new_privs, seccomp, user, privileged, init, pid_namespace, root_filesystem, mount_flags,
        host_directory, shared_mount, engine_socket, environment, masked, core, network, gpu,
        leftovers, device, cgroups,
    )
}  # fmt: skip


@contextmanager
def without(name: str, place: Path) -> Iterator[None]:
    """While the block runs, containers are created without the protection `name`; `place` is an empty directory."""
    real = docker.APIClient.create_container
    place.chmod(0o755)

    def create(self: Any, *arguments: Any, **request: Any) -> Any:
        if request.get("user") != ROOT:  # the workspace's helper container is not what is tested
            CONTROLS[name](request, place)
        return real(self, *arguments, **request)

    with mock.patch.object(docker.APIClient, "create_container", create):
        try:
            yield
        finally:
            if os.path.ismount(place):
                subprocess.run(["umount", str(place)], check=True)

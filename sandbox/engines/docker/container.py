"""What the engine is asked for: one container's creation request, hardened, from a specification."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import docker
from docker.types import LogConfig, Mount, Ulimit

from arsandbox.policies.seccomp import docker_profile
from arsandbox.sandbox.engines import init
from arsandbox.sandbox.engines.docker import gpus
from arsandbox.sandbox.engines.port import SandboxSpec
from arsandbox.sandbox.engines.variables import variables

WORKSPACE = "/workspace"
# The host's clock decides; process 1 ends the sandbox this much later where no controller lives.
INSIDE_MARGIN_S = 1.0
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def host_config(
    api: docker.APIClient, spec: SandboxSpec, *, volume: str, runtime: str, gpu_way: str = ""
) -> dict[str, Any]:
    """The container's host configuration: read-only root, no network, no capability, hard limits, leased GPUs."""
    limits = spec.limits
    mounts = [
        # no_copy: else the engine copies the image's /workspace into the upper layer, as root.
        Mount(WORKSPACE, volume, type="volume", no_copy=True),
        *(Mount(mount.target, str(mount.source), type="bind", read_only=True) for mount in spec.mounts),
    ]
    config: dict[str, Any] = api.create_host_config(
        mounts=mounts,
        read_only=True,
        network_mode="none",
        cap_drop=["ALL"],
        security_opt=["no-new-privileges", f"seccomp={docker_profile()}"],
        privileged=False,
        ipc_mode="private",
        nano_cpus=int(limits.cpus * 1e9),
        mem_limit=limits.memory_bytes,
        memswap_limit=limits.memory_bytes,
        mem_swappiness=None,
        pids_limit=limits.pids,  # process 1, ours, is one of them
        shm_size=limits.shm_bytes,
        # exec, as the workspace is: compilers of training code (Triton, inductor) load what they put there.
        tmpfs={
            "/tmp": f"rw,exec,nosuid,nodev,mode=1777,size={limits.tmp_bytes},nr_inodes={limits.disk_inodes}",  # noqa: S108
            # The engine's message queue file system is writable for everyone and bound by no limit of ours.
            "/dev/mqueue": "ro,noexec,nosuid,nodev,mode=0555,size=4k,nr_inodes=1",
        },
        ulimits=[
            Ulimit(name="core", soft=0, hard=0),
            Ulimit(name="nofile", soft=limits.open_files, hard=limits.open_files),
            Ulimit(name="memlock", soft=64 * 1024, hard=64 * 1024),
        ],
        log_config=LogConfig(type="none"),
        restart_policy={"Name": "no"},
        auto_remove=False,  # it would destroy the exit code and the OOM flag
        devices=[],
        device_requests=[gpus.device_request(gpu_way, spec.gpus)] if spec.gpus else [],
    )
    config["CgroupnsMode"] = "private"
    config["Runtime"] = runtime
    if spec.cores:
        config["CpusetCpus"], config["CpusetMems"] = spec.cores, spec.memory_nodes
    return config


def environment(spec: SandboxSpec, uid: int, gpu_way: str = "") -> dict[str, str]:
    """Every variable that the command gets; the image's own loader and GPU variables are overridden."""
    own = {
        **gpus.variables(gpu_way, spec.gpus),
        "LD_PRELOAD": "",
        "LD_LIBRARY_PATH": "",
    }
    return own | variables(spec, uid, path=_PATH)


def create(
    api: docker.APIClient, spec: SandboxSpec, *, name: str, volume: str, uid: int, runtime: str, gpu_way: str = ""
) -> str:
    """Create (not start) the container and return its id. Raises the SDK's exceptions."""
    own = environment(spec, uid, gpu_way)
    created = api.create_container(
        image=spec.image.digest,
        command=[f"{spec.deadline_s + INSIDE_MARGIN_S:.3f}", *spec.command],
        entrypoint=["python3", "-I", "-S", "-c", inspect.getsource(init)],
        name=name,
        hostname="sandbox",
        user=f"{uid}:{uid}",
        working_dir=WORKSPACE,
        environment=[*_without(api, spec.image.digest, own), *(f"{name}={value}" for name, value in own.items())],
        labels=spec.labels,
        network_disabled=True,
        stdin_open=False,
        tty=False,
        healthcheck={"test": ["NONE"]},
        stop_signal="SIGKILL",
        host_config=host_config(api, spec, volume=volume, runtime=runtime, gpu_way=gpu_way),
    )
    identity: str = created["Id"]
    return identity


def _without(api: docker.APIClient, image: str, own: Mapping[str, str]) -> list[str]:
    """The image's other variables, in the form that makes the engine leave them out: names alone."""
    found: Any = api.inspect_image(image)  # type: ignore[no-untyped-call]
    told: list[str] = found["Config"].get("Env") or []
    return [name for name in (line.partition("=")[0] for line in told) if name not in own]

"""bwrap's arguments for one sandbox: namespaces, a root of read-only pieces, sized tmpfs, the workspace (bwrap(1))."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from arsandbox.sandbox.engines.embedded.environment import VENV, PythonEnvironment
from arsandbox.sandbox.engines.port import SandboxSpec
from arsandbox.sandbox.engines.variables import variables

WORKSPACE = "/workspace"
_LINKS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
# Hidden: what Docker hides, too.
_MASKED = ("/proc/kcore", "/proc/keys", "/proc/sysrq-trigger", "/proc/timer_list", "/proc/sched_debug", "/proc/kmsg")
_READ_ONLY = ("/proc/sys", "/proc/bus", "/proc/fs", "/proc/irq")
_ETC = {
    "/etc/passwd": "root:x:0:0::/:/bin/false\nsandbox:x:{uid}:{uid}::/tmp:/bin/sh\n",
    "/etc/group": "root:x:0:\nsandbox:x:{uid}:\n",
    "/etc/hosts": "127.0.0.1 localhost sandbox\n::1 localhost\n",
    "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}


def isolation(uid: int) -> list[str]:
    """Fresh namespaces of every kind, no capability, and death with whoever started it."""
    return [
        "--unshare-all", "--unshare-user", "--disable-userns", "--cap-drop", "ALL", "--die-with-parent",
        "--new-session", "--as-pid-1", "--uid", str(uid), "--gid", str(uid), "--hostname", "sandbox",
    ]  # fmt: skip


def root(
    spec: SandboxSpec, python: PythonEnvironment, uid: int, *, seen: Callable[[Path], str], data: Callable[[str], int]
) -> list[str]:
    """Everything but the workspace. `seen` says by which path bwrap sees a directory, `data` gives a text's descriptor.

    The last arguments make the root itself read-only: mounts go before.
    """
    arguments = ["--ro-bind", "/usr", "/usr"]
    for name in _LINKS:
        path = Path("/", name)
        if path.is_symlink():
            arguments += ["--symlink", os.readlink(path).lstrip("/"), str(path)]
        elif path.is_dir():
            arguments += ["--ro-bind", str(path), str(path)]
    arguments += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    arguments += ["--ro-bind-try", "/etc/alternatives", "/etc/alternatives"]
    arguments += ["--ro-bind-try", "/etc/ssl/certs", "/etc/ssl/certs"]  # public; for stages with a network allowlist
    for target, text in _ETC.items():
        arguments += ["--ro-bind-data", str(data(text.format(uid=uid))), target]
    arguments += _kernel(spec)
    if not python.in_usr:
        arguments += ["--ro-bind", seen(python.prefix), str(python.prefix)]
    arguments += _virtual_environment(python, seen, data)
    return arguments


def closing(spec: SandboxSpec, seen: Callable[[Path], str]) -> list[str]:
    """The declared read-only mounts, and the root made read-only."""
    arguments: list[str] = []
    for mount in spec.mounts:
        arguments += ["--ro-bind", seen(mount.source), mount.target]
    return [*arguments, "--remount-ro", "/", "--chdir", WORKSPACE]


def environment(spec: SandboxSpec, python: PythonEnvironment, uid: int) -> dict[str, str]:
    """Every variable that the command gets."""
    path = f"{VENV}/bin:{python.prefix}/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
    return variables(spec, uid, path=path)


def set_variables(variables: dict[str, str]) -> list[str]:
    """bwrap's own environment is empty: these alone are set."""
    return [word for name, value in variables.items() for word in ("--setenv", name, value)]


def _kernel(spec: SandboxSpec) -> list[str]:
    arguments = ["--proc", "/proc"]
    for path in _READ_ONLY:
        if Path(path).exists():
            arguments += ["--ro-bind", path, path]
    for path in _MASKED:
        if Path(path).exists():
            arguments += ["--ro-bind", "/dev/null", path]
    return [
        *arguments,
        *("--dev", "/dev"),
        *("--perms", "1777", "--size", str(spec.limits.shm_bytes), "--tmpfs", "/dev/shm"),  # noqa: S108
        *("--remount-ro", "/dev"),
        *("--perms", "1777", "--size", str(spec.limits.tmp_bytes), "--tmpfs", "/tmp"),  # noqa: S108
    ]


def _virtual_environment(
    python: PythonEnvironment, seen: Callable[[Path], str], data: Callable[[str], int]
) -> Sequence[str]:
    """The packages, as a virtual environment made of mounts: no script of the user's is in it."""
    arguments = ["--ro-bind-data", str(data(python.configuration)), f"{VENV}/pyvenv.cfg"]
    for name in ("python", "python3", f"python{sys.version_info[0]}.{sys.version_info[1]}"):
        arguments += ["--symlink", str(python.interpreter), f"{VENV}/bin/{name}"]
    for packages in python.packages[:1]:  # purelib and platlib are one directory wherever a venv is used
        arguments += ["--ro-bind", seen(packages), python.packages_target]
    return arguments

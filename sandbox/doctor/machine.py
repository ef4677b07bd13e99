"""What the machine itself must have: git, kernel, cgroups, file systems, space, a clock."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import time
from pathlib import Path

from arsandbox.policies.model import MIB, Limits
from arsandbox.sandbox import state
from arsandbox.sandbox.doctor.rows import Row, attempt
from arsandbox.sandbox.engines import cgroup
from arsandbox.sandbox.engines.host_workspace import HostWorkspace
from arsandbox.sandbox.engines.port import EngineFacts
from arsandbox.sandbox.errors import ArsandboxError
from arsandbox.sandbox.quantities import format_size
from arsandbox.sandbox.scratch import scratch
from arsandbox.sandbox.workspace.overlay import overlay_options, unmount_below

_GIT = "sudo apt-get install git"
_LOW_SPACE = 5 * 1024**3
_CONTROLLERS = {"memory", "pids", "cpu"}
_CLOCK_SOURCE = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
_UNSYNCHRONISED = 0x40  # adjtimex(2), STA_UNSYNC


def git() -> Row:
    """The git program."""
    found = shutil.which("git")
    if found is None:
        return Row(name="git", status="missing", detail="not installed", fix=_GIT)
    try:
        said = subprocess.run(
            [found, "--version"], capture_output=True, text=True, errors="replace", check=False, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        return Row(name="git", status="missing", detail=f"{found} does not work: {error}", fix=_GIT)
    if not said.startswith("git version "):
        return Row(name="git", status="missing", detail=f"{found} is not git: {said[:80]!r}", fix=_GIT)
    return Row(name="git", status="ok", detail=said.splitlines()[0])


def kernel(engine: str) -> Row:
    """Whether overlayfs can do what is needed: `userxattr`, and on a tmpfs where Docker is used without root."""
    release = platform.release()
    numbers = [int(part) for part in release.split("-")[0].split(".")[:2] if part.isdigit()]
    least, why = [5, 11], "overlayfs with userxattr"
    if engine == "docker" and os.geteuid() != 0:
        least, why = [6, 6], "overlayfs on a tmpfs, which Docker without root needs; or run arsandbox as root"
    if numbers < least:
        fix = f"use Linux {least[0]}.{least[1]} or later ({why})"
        return Row(name="kernel", status="missing", detail=release, fix=fix)
    return Row(name="kernel", status="ok", detail=release)


def cgroups(facts: EngineFacts | None) -> Row:
    """Version and controllers, and what of them the engine cannot use."""
    mounted = cgroup.mounts()
    offered = {name for name in mounted if name and "=" not in name}
    if "" in mounted:
        offered |= set((mounted[""] / "cgroup.controllers").read_text().split())
    detail = f"{cgroup.version()}: {', '.join(sorted(offered & {*_CONTROLLERS, 'cpuset', 'io', 'blkio'}))}"
    lacking = sorted(_CONTROLLERS - offered) + [name for name in (facts.lacks if facts else ()) if name != "swap"]
    if lacking:
        fix = f"boot with cgroup_enable={lacking[0]} on the kernel's command line"
        return Row(name="cgroups", status="missing", detail=f"{detail}; without {', '.join(lacking)}", fix=fix)
    if facts is not None and "swap" in facts.lacks and len(Path("/proc/swaps").read_text().splitlines()) > 1:
        told = f"{detail}; swap is not counted, so a sandbox may swap beyond its memory limit"
        return Row(name="cgroups", status="warning", detail=told, fix="sudo swapoff -a, or boot with swapaccount=1")
    return Row(name="cgroups", status="ok", detail=detail)


def privilege(engine: str) -> Row:
    """What root has, and what is lost without it."""
    if os.geteuid() == 0:
        return Row(name="privilege", status="ok", detail="root: cgroup-wide kill, disk quota on ext4 images")
    lost = {
        "docker": "the engine kills (slower under a fork bomb); the disk quota is a tmpfs and counts as memory",
        "embedded": "sandboxes run with your own user id; the workspace is a copy in a tmpfs and counts as memory",
    }
    fix = "run arsandbox as root where that matters"
    return Row(name="privilege", status="warning", detail=f"not root: {lost.get(engine, lost['docker'])}", fix=fix)


def overlay() -> Row:
    """An overlay, mounted as workspaces are."""
    if os.geteuid() != 0:
        return Row(name="overlay", status="ok", detail="mounted by the engine (cannot be tried without root)")
    with scratch(state.new_experiment_id()) as root:
        for name in ("lower", "upper", "work", "merged"):
            (root / name).mkdir()
        options = overlay_options([root / "lower"], root / "upper", root / "work")
        try:
            refused = attempt(["mount", "-t", "overlay", "overlay", "-o", options, str(root / "merged")])
        finally:
            unmount_below(root)
        if refused is not None:
            fix = "set ARSANDBOX_HOME to a directory on ext4 or xfs, not on an overlay"
            return Row(name="overlay", status="missing", detail=f"cannot be mounted: {refused}", fix=fix)
    return Row(name="overlay", status="ok", detail=f"works below {state.home()}")


def quota() -> Row:
    """The disk quota, made as for a sandbox and looked at."""
    if os.geteuid() != 0:
        return Row(name="quota", status="ok", detail="a sized tmpfs (cannot be tried without a sandbox)")
    for tool, package in (("mkfs.ext4", "e2fsprogs"), ("mount", "mount")):
        if shutil.which(tool) is None:
            fix = f"sudo apt-get install {package}"
            return Row(name="quota", status="missing", detail=f"{tool} is not installed", fix=fix)
    limits = Limits(disk_bytes=16 * MIB, disk_inodes=1000)
    with scratch(state.new_experiment_id()) as place:
        (place / "quota").mkdir()
        workspace = HostWorkspace(place / "quota", (), limits, 65534)
        try:
            workspace.create()
            size = os.statvfs(workspace.upper)
            if size.f_blocks * size.f_frsize > limits.disk_bytes:
                fix = "report this: it must not happen"
                return Row(name="quota", status="missing", detail="the workspace is larger than its quota", fix=fix)
        except ArsandboxError as error:
            fix = "allow loop devices (a container needs --privileged for them), or run arsandbox as an ordinary user"
            return Row(name="quota", status="missing", detail=error.message, fix=fix)
        finally:
            workspace.remove()
    return Row(name="quota", status="ok", detail="ext4 images, loop-mounted: tried")


def disk(facts: EngineFacts | None) -> Row:
    """Free space where runs and where the engine keep their things."""
    places = {"runs": state.home()}
    if facts is not None and facts.data_directory and Path(facts.data_directory).is_dir():
        places["engine"] = Path(facts.data_directory)
    free = {name: shutil.disk_usage(place).free for name, place in places.items()}
    told = ", ".join(f"{format_size(free[name])} free below {place} ({name})" for name, place in places.items())
    low = [name for name, size in free.items() if size < _LOW_SPACE]
    fix = "docker system prune, or move the engine's data to a larger disk"
    if "runs" in low:
        fix = "free some space, or set ARSANDBOX_HOME to a larger file system"
    return Row(name="disk", status="warning" if low else "ok", detail=told, fix=fix if low else "")


def clock() -> Row:
    """Whether the time of day can be believed: records, promotions and TLS use it. Limits do not."""
    source = _CLOCK_SOURCE.read_text().strip() if _CLOCK_SOURCE.exists() else "unknown"
    detail = f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime())} UTC, source {source}"
    fix = "sudo timedatectl set-ntp true"
    if Path(__file__).stat().st_mtime > time.time() + 60:
        return Row(name="clock", status="warning", detail=f"{detail}: before arsandbox was installed", fix=fix)
    synchronised = _synchronised()
    if synchronised is None:
        return Row(name="clock", status="ok", detail=f"{detail}; whether it is synchronised is not told here")
    if not synchronised:
        return Row(name="clock", status="warning", detail=f"{detail}, not synchronised", fix=fix)
    return Row(name="clock", status="ok", detail=f"{detail}, synchronised")


def _synchronised() -> bool | None:
    """The kernel's word (adjtimex(2), read only); None where it gives none."""
    timex = (ctypes.c_byte * 256)()
    if ctypes.CDLL(None).adjtimex(timex) < 0:
        return None
    status = ctypes.c_int.from_buffer(timex, 4 * ctypes.sizeof(ctypes.c_long) + ctypes.sizeof(ctypes.c_long)).value
    return not status & _UNSYNCHRONISED


def image_tools(engine: str) -> Row:
    """Whether base images can be built."""
    if engine == "embedded":
        return Row(name="images", status="ok", detail="none are needed: sandboxes see this machine's programs")
    if shutil.which("mmdebstrap") is None:
        fix = "sudo apt-get install mmdebstrap debian-archive-keyring"
        return Row(name="images", status="warning", detail="mmdebstrap is missing: no image can be built", fix=fix)
    return Row(name="images", status="ok", detail="base images can be built here")

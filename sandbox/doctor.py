"""Is this machine able to run sandboxes? Each check says ok, warning or missing, and how to fix it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from arsandbox.sandbox import advisories, state
from arsandbox.sandbox.engines import cgroup
from arsandbox.sandbox.engines.port import Engine
from arsandbox.sandbox.engines.registry import AUTO, open_any, open_engine
from arsandbox.sandbox.errors import ArsandboxError
from arsandbox.sandbox.models import Guarantee, Guarantees, Model
from arsandbox.sandbox.quantities import format_size
from arsandbox.sandbox.workspace.overlay import overlay_options

_LOW_SPACE = 5 * 1024**3


class Row(Model):
    """One check: what was found, and the one command that helps (empty when all is well)."""

    name: str
    status: Literal["ok", "warning", "missing"]
    detail: str
    fix: str = ""


def examine(engine: str) -> list[Row]:
    """Every check, in the order in which they matter. Never raises for what it finds."""
    checks: list[Callable[[], Row]] = [
        lambda: _engine(engine),
        lambda: _other_engine(engine),
        lambda: _promises(engine),
        known_holes,
        _git,
        _kernel,
        _cgroups,
        _privilege,
        _overlay,
        _quota,
        _disk,
        _image_tools,
        _gpu,
    ]
    return [check() for check in checks]


def _engine(name: str) -> Row:
    try:
        info = _open(name).info()
    except ArsandboxError as error:
        return Row(name="engine", status="missing", detail=error.message, fix=error.hint)
    return Row(name="engine", status="ok", detail=f"{info.name} {info.version}, runtime {info.runtime}")


def known_holes() -> Row:
    """Whether the programs that make the sandboxes have holes that are known (advisories.py)."""
    found = {"runc": advisories.runc_version(), "nvidia-ctk": advisories.toolkit_version()}
    judged = [
        (advisory, advisories.judge(advisory, *installed))
        for advisory in advisories.ADVISORIES
        if (installed := found[advisory.program]) is not None
    ]
    told = ", ".join(f"{name} {one[1] or one[0]}" for name, one in found.items() if one) or "runc is not installed"
    for status, certainty, words in (
        ("missing", "broken", "has a known hole"),
        ("warning", "unknown", "may have a known hole, unless the distribution has fixed it"),
    ):
        holes = [advisory for advisory, verdict in judged if verdict == certainty]
        if holes:
            names = "; ".join(f"{one.program}: {one.cve}" for one in holes)
            fix = "update it: " + "; ".join(f"{one.program} {' or '.join(one.fixed)} or later" for one in holes)
            return Row(name="versions", status=status, detail=f"{told}: {words} ({names})", fix=fix)
    return Row(name="versions", status="ok", detail=told)


def _other_engine(name: str) -> Row:
    """The engine that was not asked for: nothing depends on it, but it may be what helps."""
    other = "docker" if name == "embedded" else "embedded"
    try:
        info = open_engine(other).info()
    except ArsandboxError as error:
        return Row(name=other, status="warning", detail=error.message, fix=error.hint)
    return Row(name=other, status="ok", detail=f"{info.version} would do as well (--engine {other})")


def _promises(name: str) -> Row:
    """What the engine does not enforce here, and what would change that."""
    try:
        info = _open(name).info()
    except ArsandboxError:
        return Row(name="promises", status="warning", detail="not known without an engine")
    kept = info.guarantees or Guarantees(**dict.fromkeys(Guarantees.model_fields, Guarantee.NOT_OFFERED))
    if not kept.weak():
        return Row(name="promises", status="ok", detail="every one is enforced")
    detail = ", ".join(f"{promise}: {found.value}" for promise, found in kept.weak().items())
    limited = kept.memory is Guarantee.ENFORCED and kept.pids is Guarantee.ENFORCED
    fix = "" if limited else "systemd-run --user --scope -p Delegate=yes arsandbox …, or run arsandbox as root"
    return Row(name="promises", status="ok" if limited else "warning", detail=detail, fix=fix)


def _open(name: str) -> Engine:
    return open_any() if name == AUTO else open_engine(name)


def _git() -> Row:
    found = shutil.which("git")
    if found is None:
        return Row(name="git", status="missing", detail="not installed", fix="sudo apt-get install git")
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=False).stdout.strip()
    return Row(name="git", status="ok", detail=version)


def _kernel() -> Row:
    release = platform.release()
    numbers = [int(part) for part in release.split("-")[0].split(".")[:2] if part.isdigit()]
    if numbers < [5, 11]:
        fix = "use Linux 5.11 or later (overlayfs with userxattr)"
        return Row(name="kernel", status="missing", detail=release, fix=fix)
    return Row(name="kernel", status="ok", detail=release)


def _cgroups() -> Row:
    return Row(name="cgroups", status="ok", detail=cgroup.version())


def _privilege() -> Row:
    if os.geteuid() == 0:
        return Row(name="privilege", status="ok", detail="root: cgroup-wide kill, disk quota on ext4 images")
    return Row(
        name="privilege",
        status="warning",
        detail="not root: the engine kills (slower under a fork bomb); the disk quota is a tmpfs and counts as memory",
        fix="run arsandbox as root where that matters",
    )


def _overlay() -> Row:
    if os.geteuid() != 0:
        return Row(name="overlay", status="ok", detail="mounted by the engine (cannot be tried without root)")
    with tempfile.TemporaryDirectory(prefix="overlay-", dir=state.home()) as scratch:
        root = Path(scratch)
        for name in ("lower", "upper", "work", "merged"):
            (root / name).mkdir()
        options = overlay_options([root / "lower"], root / "upper", root / "work")
        mounted = _try(["mount", "-t", "overlay", "overlay", "-o", options, str(root / "merged")])
        if mounted is not None:
            fix = "set ARSANDBOX_HOME to a directory on ext4 or xfs, not on an overlay"
            return Row(name="overlay", status="missing", detail=f"cannot be mounted: {mounted}", fix=fix)
        _try(["umount", str(root / "merged")])
    return Row(name="overlay", status="ok", detail=f"works below {state.home()}")


def _quota() -> Row:
    for tool, package in (("mkfs.ext4", "e2fsprogs"), ("mount", "mount")):
        if os.geteuid() == 0 and shutil.which(tool) is None:
            fix = f"sudo apt-get install {package}"
            return Row(name="quota", status="missing", detail=f"{tool} is not installed", fix=fix)
    kind = "ext4 images" if os.geteuid() == 0 else "sized tmpfs, held by a helper container"
    return Row(name="quota", status="ok", detail=kind)


def _disk() -> Row:
    free = shutil.disk_usage(state.home()).free
    low = free < _LOW_SPACE
    return Row(
        name="disk",
        status="warning" if low else "ok",
        detail=f"{format_size(free)} free below {state.home()}",
        fix="free some space, or set ARSANDBOX_HOME to a larger file system" if low else "",
    )


def _image_tools() -> Row:
    if shutil.which("mmdebstrap") is None:
        fix = "sudo apt-get install mmdebstrap debian-archive-keyring"
        return Row(name="images", status="warning", detail="mmdebstrap is missing: no image can be built", fix=fix)
    return Row(name="images", status="ok", detail="base images can be built here")


def _gpu() -> Row:
    if not Path("/dev/nvidiactl").exists():
        return Row(name="gpu", status="ok", detail="no NVIDIA device: CPU images only")
    driver = Path("/proc/driver/nvidia/version")
    detail = driver.read_text().splitlines()[0] if driver.exists() else "device found, driver not loaded"
    if shutil.which("nvidia-container-runtime-hook") is None and shutil.which("nvidia-ctk") is None:
        fix = "sudo apt-get install nvidia-container-toolkit, then restart the engine"
        return Row(name="gpu", status="warning", detail=f"{detail}; no container toolkit", fix=fix)
    return Row(name="gpu", status="ok", detail=detail)


def _try(arguments: list[str]) -> str | None:
    """None when the command worked, else its last line."""
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        return f"{arguments[0]} is not installed"
    if done.returncode == 0:
        return None
    return (done.stderr.strip().splitlines() or ["no message"])[-1]

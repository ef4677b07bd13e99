"""Facts of this machine that a record needs, and the labels by which its sandboxes are found again."""

from __future__ import annotations

import hashlib
import os
import platform
import socket
from importlib.metadata import version
from pathlib import Path

from arsandbox.sandbox import state
from arsandbox.sandbox.engines import cgroup
from arsandbox.sandbox.gpu import nvml

EXPERIMENT_LABEL = "arsandbox.experiment"
HOME_LABEL = "arsandbox.home"


def environment() -> dict[str, str]:
    """What a reader of a record must know of the machine to judge a rerun."""
    load = os.getloadavg()
    return {
        "arsandbox": version("arsandbox"),
        "architecture": platform.machine(),
        "cgroups": cgroup.version(),
        "cores": str(os.cpu_count() or 0),
        "cpu": _cpu_model(),
        "kernel": platform.release(),
        "load": f"{load[0]:.2f} {load[1]:.2f} {load[2]:.2f}",
        "python": platform.python_version(),
        **nvml.facts(),
    }


def labels(experiment: str, deadline: str) -> dict[str, str]:
    """Labels of everything that an experiment makes; `deadline` is RFC 3339."""
    start = Path(f"/proc/{os.getpid()}/stat").read_text().rpartition(")")[2].split()[19]
    return {
        EXPERIMENT_LABEL: experiment,
        HOME_LABEL: home_id(),
        "arsandbox.controller": f"{socket.gethostname()}/{os.getpid()}/{start}",
        "arsandbox.deadline": deadline,
    }


def home_id() -> str:
    """Names this state directory on an engine that several of them share."""
    return hashlib.sha256(os.fsencode(state.home().resolve())).hexdigest()[:16]


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"

"""Stand-ins for what a GPU machine has: the driver's library and the container runtime's hook. Nothing is a test."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
GIB = 1024**3
# Of devices that tests tell of where any will do.
UUIDS = tuple(f"GPU-{letter * 8}-0000-0000-0000-000000000000" for letter in "abc")
# In the hook's place: writes down the container's environment, and gives it harmless nodes (/dev/null) as the real one
# would, one a device; a file `tells` beside it makes it fail with these words, as nvidia-container-cli does.
HOOK = """#!/bin/sh
exec 3<&0
exec python3 - "$@" <<'PROGRAM'
import json, os, pathlib, subprocess, sys
place = pathlib.Path({place!r})
if sys.argv[1:] == ["-version"]:
    print("NVIDIA Container Runtime Hook version 1.17.8")
    sys.exit()
given = json.load(open(3))
spec = json.loads(pathlib.Path(given["bundle"], "config.json").read_text())
env = [line for line in spec["process"]["env"] if line.startswith("NVIDIA_")]
with (place / "calls").open("a") as file:
    file.write(json.dumps({{"arguments": sys.argv[1:], "env": env, "user": spec["process"]["user"],
                            "readonly": spec["root"]["readonly"]}}) + "\\n")
if (place / "tells").exists():
    sys.exit((place / "tells").read_text())
last = dict(line.split("=", 1) for line in env)
devices = last["NVIDIA_VISIBLE_DEVICES"].split(",")
root = spec["root"]["path"]
for name in ["nvidiactl", *(f"nvidia{{n}}" for n in range(len(devices)))]:
    subprocess.run(["nsenter", "-t", str(given["pid"]), "-m", "mknod", "-m", "666", f"{{root}}/dev/{{name}}",
                    "c", "1", "3"], check=True)
PROGRAM
"""


@pytest.fixture(scope="session")
def nvml_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the stand-in libnvidia-ml.so.1 is."""
    place = compiled(tmp_path_factory.mktemp("nvml"))
    if place is None:
        pytest.skip("there is no C compiler for the stand-in libnvidia-ml.so.1")
    return place


def compiled(directory: Path) -> Path | None:
    """The directory with the stand-in libnvidia-ml.so.1; None where there is no C compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return None
    library = directory / "libnvidia-ml.so.1"
    subprocess.run(
        [
            compiler,
            "-shared",
            "-fPIC",
            "-O1",
            "-Wl,-soname,libnvidia-ml.so.1",
            "-o",
            str(library),
            str(HERE / "nvml.c"),
        ],
        check=True,
    )
    return directory


@dataclass
class Gpu:
    """One device of the stand-in driver."""

    uuid: str
    total: int = 80 * GIB
    used: int = GIB // 2
    utilisation: int = 0
    clock: int = 1980
    reasons: int = 0
    pid: int = 0
    parent: str = "-"
    name: str = "NVIDIA H100 80GB HBM3"


@dataclass
class Driver:
    """The stand-in driver's devices, told through a file."""

    file: Path
    devices: list[Gpu] = field(default_factory=list)
    told: int = 0
    # Of each device: how often it was read to the end since the last word.
    reads: Counter[str] = field(default_factory=Counter)
    # Those that could not be read since then.
    failed: set[str] = field(default_factory=set)

    def tell(self, *devices: Gpu) -> None:
        """From now on these, and no others, are there."""
        self.devices = list(devices)
        fresh = self.file.with_suffix(f".{os.getpid()}")
        fresh.write_text(
            "".join(
                f"{d.uuid}|{d.name}|{d.total}|{d.used}|{d.utilisation}|{d.clock}|{d.reasons}|{d.pid}|{d.parent}\n"
                for d in devices
            )
        )
        self.failed = set()
        fresh.rename(self.file)
        self.told += 1
        self.reads = Counter()

    def watch(self, read: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
        """`read`, which asks this process's driver for a device, with its calls counted."""

        def counted(session: Any, uuid: str) -> Any:
            began = self.told
            try:
                return read(session, uuid)
            except Exception:
                self.failed.add(uuid)
                raise
            finally:
                if began == self.told:
                    self.reads[uuid] += 1

        return counted

    def seen(self, uuid: str, times: int = 2) -> None:
        """Wait until the device was read so often since the last word: what came of all but the last is known.

        Or until it could not be read, which ends the reading: also by a call that began before the last word.
        """
        end = time.monotonic() + 20
        while self.reads[uuid] < times and uuid not in self.failed:
            assert time.monotonic() < end, f"nobody reads {uuid}"
            time.sleep(0.005)


def hook(directory: Path) -> Path:
    """Put the recording hook into `directory`, which must then be in the PATH of dockerd; what it saw is in `calls`."""
    program = directory / "nvidia-container-runtime-hook"
    program.write_text(HOOK.format(place=str(directory)))
    program.chmod(0o755)
    return program

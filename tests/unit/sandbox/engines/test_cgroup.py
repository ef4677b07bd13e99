"""Readings of a sandbox's cgroup, from made-up hierarchies of each version."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from arsandbox.sandbox.engines import cgroup

V2 = "30 1 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
V1 = (
    "31 1 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "32 1 0:28 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n"
    "33 1 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
)
FILES2 = {
    "memory.current": "1000\n", "memory.peak": "3000\n", "memory.events": "low 0\nmax 7\noom 2\noom_kill 1\n",
    "pids.current": "5\n", "pids.peak": "9\n", "pids.events": "max 4\n",
    "cpu.stat": "usage_usec 2500000\nuser_usec 1\n", "cgroup.procs": "",
}  # fmt: skip


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """/proc and /sys of a machine of our own making."""

    def moved(path: str | Path) -> Path:
        return tmp_path / str(path).lstrip("/") if str(path).startswith(("/proc/", "/sys/")) else Path(path)

    monkeypatch.setattr(cgroup, "Path", moved)
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "7").mkdir()
    return tmp_path


def fill(machine: Path, mounts: str, own: str, files: dict[str, str]) -> None:
    (machine / "proc/self/mountinfo").write_text("1 0 8:1 / / rw - ext4 /dev/vda rw\n" + mounts)
    (machine / "proc/7/cgroup").write_text(own)
    for name, text in files.items():
        path = machine / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_version_2(machine: Path) -> None:
    fill(machine, V2, "0::/docker/x\n", {f"docker/x/{name}": text for name, text in FILES2.items()})
    (machine / "sys/fs/cgroup/cgroup.controllers").write_text("memory pids cpu")
    group = cgroup.Cgroup(7)
    found = group.read()
    assert group.readable and cgroup.version() == "v2"
    assert (found.memory_bytes, found.peak_memory_bytes, found.oom_kills) == (1000, 3000, 1)
    assert (found.peak_pids, found.pids_refused, found.cpu_s) == (9, 4, 2.5)
    (machine / "sys/fs/cgroup/docker/x/memory.current").write_text("500\n")
    (machine / "sys/fs/cgroup/docker/x/pids.events").write_text("max 0\n")
    assert (group.read().memory_bytes, group.read().peak_memory_bytes, group.read().pids_refused) == (500, 3000, 4)
    group.close()
    assert group.read().peak_memory_bytes == 3000 and not group.readable


def test_version_1_and_hybrid(machine: Path) -> None:
    files = {
        "memory/d/memory.usage_in_bytes": "10", "memory/d/memory.max_usage_in_bytes": "20",
        "memory/d/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
        "pids/d/pids.current": "1", "pids/d/pids.events": "max 2\n", "cpu/d/cpuacct.usage": "1500000000\n",
    }  # fmt: skip
    own = "4:memory:/d\n3:pids:/d\n2:cpu,cpuacct:/d\n0::/d\n"
    fill(machine, V1, own, files)
    assert cgroup.version() == "v1"
    for mounts in (V1, V1 + V2.replace("/sys/fs/cgroup ", "/sys/fs/cgroup/unified ")):
        fill(machine, mounts, own, {})
        group = cgroup.Cgroup(7)
        found = group.read()
        assert (found.memory_bytes, found.peak_memory_bytes, found.oom_kills) == (10, 20, 3)
        assert (found.peak_pids, found.pids_refused, found.cpu_s) == (1, 2, 1.5)
        group.close()
    assert cgroup.version() == "hybrid"


def test_the_root_cgroup_is_nobody_s_alone_and_is_never_read_or_killed(machine: Path) -> None:
    files = {**FILES2, "cgroup.procs": f"{os.getpid()}\n"}
    fill(machine, V2, "0::/\n", files)
    group = cgroup.Cgroup(7)
    assert not group.readable and group.read() == cgroup.Readings()
    assert group.kill(seconds=0.1)


@pytest.mark.parametrize("text", ["", "max\n", "-1\n", "garbage", "1 2\n", "\n"])
def test_odd_contents_are_read_as_nothing(text: str, machine: Path) -> None:
    fill(machine, V2, "0::/d\n", {f"d/{name}": text for name in FILES2 if name != "cgroup.procs"})
    group = cgroup.Cgroup(7)
    assert group.read() == cgroup.Readings()
    group.close()


def test_killing_ends_what_is_in_it(machine: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as victim:
        fill(machine, V2, "0::/d\n", {**{f"d/{n}": t for n, t in FILES2.items()}, "d/cgroup.procs": f"{victim.pid}\n"})
        group = cgroup.Cgroup(7)
        assert not group.kill(seconds=0.1)  # the made-up file never gets empty
        assert victim.wait(5) == -signal.SIGKILL
        (machine / "sys/fs/cgroup/d/cgroup.procs").write_text("")
        assert group.kill(seconds=0.1)
        group.close()

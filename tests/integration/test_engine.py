"""What a process finds inside a sandbox: identity, file systems, network, limits, environment."""

from __future__ import annotations

import grp
import json
import os
import pwd
import re
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from arsandbox.policies.model import MIB
from arsandbox.sandbox.models import Reason
from arsandbox_fixtures import boxes
from arsandbox_fixtures.boxes import run_box
from arsandbox_fixtures.docker_engine import collect_quietly
from arsandbox_fixtures.home import SECRET
from arsandbox_fixtures.leftovers import leftovers

pytestmark = [pytest.mark.engine, pytest.mark.timeout(120)]

PROBE = r"""
import json, os, re, resource, socket, struct

def text(path):
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except OSError as error:
        return None

def attempt(call, *arguments):
    try:
        call(*arguments)
        return "worked"
    except OSError as error:
        return error.strerror

def descriptors():
    found = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            found[int(number)] = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:
            pass  # the one that listed them
    return found

def touch(directory):
    path = os.path.join(directory, "probe-was-here")
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
    os.unlink(path)

def resolve(name):
    try:
        return socket.gethostbyname(name)
    except OSError as error:
        return None

def connect(address):
    try:
        with socket.create_connection(address, timeout=3):
            return "worked"
    except OSError as error:
        return str(error)

def cgroup(*names):
    for name in names:
        found = text("/sys/fs/cgroup/" + name)
        if found is not None:
            return found.strip()

mounts = [line.split(" - ") for line in text("/proc/self/mountinfo").splitlines()]
mounts = [(left.split(" "), right.split(" ")) for left, right in mounts]
fds = descriptors()
status = dict(re.findall(r"^(\w+):\s*(.*)$", text("/proc/self/status"), re.M))
found = {
    "status": status,
    "uid": os.getresuid(), "gid": os.getresgid(), "groups": os.getgroups(),
    "fds": fds,
    "root": {p: attempt(touch, p) for p in ("/", "/etc", "/usr", "/usr/local/bin", "/home", "/var/tmp", "/opt")},
    "workspace": {p: attempt(touch, p) for p in ("/workspace", "/tmp", "/dev/shm")},
    "mounts": [
        {"root": left[3], "point": left[4], "options": left[5].split(","), "optional": left[6:], "type": right[0],
         "source": right[1], "super": right[2].split(","), "writable": attempt(touch, left[4]) == "worked"}
        for left, right in mounts
    ],
    "interfaces": sorted(line.split(":")[0].strip() for line in text("/proc/net/dev").splitlines()[2:]),
    "sysfs_interfaces": sorted(os.listdir("/sys/class/net")) if os.path.isdir("/sys/class/net") else ["lo"],
    "routes": (text("/proc/net/route") or "").splitlines()[1:],
    "routes6": [l for l in (text("/proc/net/ipv6_route") or "").splitlines() if not l.split()[-1] == "lo"],
    "names": {n: resolve(n) for n in ("example.org", "host.docker.internal", "gateway.docker.internal")},
    "connections": {a: connect((a, p)) for a, p in
                    (("169.254.169.254", 80), ("172.17.0.1", 22), ("8.8.8.8", 53), ("1.1.1.1", 443))},
    "core": resource.getrlimit(resource.RLIMIT_CORE),
    "core_pattern": attempt(os.open, "/proc/sys/kernel/core_pattern", os.O_WRONLY),
    "environment": dict(os.environ),
    "hostname": socket.gethostname(),
    "git": [p for p in ("/workspace/.git", "/.git", "/workspace/../.git") if os.path.lexists(p)],
    "sockets": [p for p in ("/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock")
                if os.path.lexists(p)],
    "memory": cgroup("memory/memory.limit_in_bytes", "memory.max"),
    "swap": cgroup("memory/memory.memsw.limit_in_bytes", "memory.swap.max"),
    "pids": cgroup("pids/pids.max", "pids.max"),
    "cpu": cgroup("cpu/cpu.cfs_quota_us", "cpu,cpuacct/cpu.cfs_quota_us", "cpu.max"),
    "cpu_period": cgroup("cpu/cpu.cfs_period_us", "cpu,cpuacct/cpu.cfs_period_us"),
    "cgroup_write": [
        os.path.join(d, f) for d, _, fs in os.walk("/sys/fs/cgroup") for f in fs
        if f in ("cgroup.procs", "release_agent", "memory.limit_in_bytes", "pids.max", "memory.max", "tasks")
        and attempt(os.open, os.path.join(d, f), os.O_WRONLY) == "worked"
    ],
    "files": resource.getrlimit(resource.RLIMIT_NOFILE),
    "cwd": os.getcwd(),
    "devices": sorted(os.listdir("/dev")),
    "setuid": attempt(os.setuid, 0),
    "chroot": attempt(os.chroot, "/tmp"),
    "kcore": attempt(lambda: len(open("/proc/kcore", "rb").read(1)) or os.open("/nothing-was-read", os.O_RDONLY)),
}
print(json.dumps(found))
"""

# All that a program may find in its environment: ours, and what the engine and the image's recipe add.
ENVIRONMENT = {
    "PATH", "HOME", "USER", "LOGNAME", "LANG", "TMPDIR", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE",
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NVIDIA_VISIBLE_DEVICES",
    "NVIDIA_DRIVER_CAPABILITIES", "LD_PRELOAD", "LD_LIBRARY_PATH", "ARSANDBOX_STAGE", "ARSANDBOX_UID", "HOSTNAME",
    "DECLARED",
}  # fmt: skip
# Mount points that every container has; nothing of the host may be seen anywhere else.
POINTS = re.compile(
    r"/|/proc(/(asound|acpi|bus|fs|irq|sys|sysrq-trigger|kcore|keys|latency_stats|timer_list|timer_stats|sched_debug|"
    r"scsi|interrupts))?|/dev(/(pts|shm|mqueue))?|/sys(/(firmware|fs/cgroup(/[a-z,_=]+)?|devices/virtual/powercap))?|"
    r"/etc/(resolv\.conf|hostname|hosts)|/tmp|/workspace"
)


@pytest.fixture(scope="module")
def probe(home: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process in a sandbox says of itself."""
    from arsandbox.images.recipe import load_recipe

    ENVIRONMENT.update(load_recipe("cpu").environment)
    # A descriptor of the controller that would leak if it were inherited somewhere.
    leak = os.open("/etc/hostname", os.O_RDONLY)
    os.set_inheritable(leak, True)
    try:
        done = run_box(
            tmp_path_factory.mktemp("probe"),
            PROBE,
            environment={"DECLARED": "yes"},
            cpus=0.5,
            memory_bytes=80 * MIB,
            pids=33,
            open_files=123,
        )
    finally:
        os.close(leak)
    assert done.outcome.termination.exit_code == 0, done.text
    found = json.loads(done.text)
    assert isinstance(found, dict)
    return found


def test_no_capability_is_left(probe: dict[str, Any]) -> None:
    sets = {name: probe["status"][name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
    assert {int(value, 16) for value in sets.values()} == {0}, sets


def test_no_new_privileges_and_a_seccomp_filter(probe: dict[str, Any]) -> None:
    assert probe["status"]["NoNewPrivs"] == "1"
    assert probe["status"]["Seccomp"] == "2"


def test_the_user_is_nobody_on_this_host(probe: dict[str, Any]) -> None:
    assert len(set(probe["uid"])) == len(set(probe["gid"])) == 1
    uid, gid = probe["uid"][0], probe["gid"][0]
    assert uid != 0 and gid != 0 and 0 not in probe["groups"]
    assert set(probe["groups"]) <= {gid}
    with pytest.raises(KeyError):
        pwd.getpwuid(uid)
    with pytest.raises(KeyError):
        grp.getgrgid(gid)
    assert probe["setuid"] == probe["chroot"] == "Operation not permitted"


def test_the_root_file_system_is_read_only(probe: dict[str, Any]) -> None:
    refused = {"Read-only file system", "Permission denied", "No such file or directory"}
    assert set(probe["root"].values()) <= refused, probe["root"]
    assert [m["options"] for m in probe["mounts"] if m["point"] == "/"][-1][0] == "ro"
    assert set(probe["workspace"].values()) == {"worked"}, probe["workspace"]
    assert probe["cwd"] == "/workspace"


def test_every_writable_mount_is_nosuid_and_nodev(probe: dict[str, Any]) -> None:
    writable = [mount for mount in probe["mounts"] if mount["writable"]]
    assert {"/workspace", "/tmp", "/dev/shm"} <= {mount["point"] for mount in writable}
    for mount in writable:
        assert {"nosuid", "nodev"} <= set(mount["options"]), mount


def test_nothing_of_the_host_is_mounted(probe: dict[str, Any]) -> None:
    for mount in probe["mounts"]:
        assert POINTS.fullmatch(mount["point"]), mount
        assert not any(option.startswith("shared:") for option in mount["optional"]), mount
        on_a_disk = mount["type"] in ("ext4", "xfs", "btrfs") or mount["source"].startswith("/dev/")
        if on_a_disk:  # the engine's three files; read-only
            assert mount["point"].startswith("/etc/"), mount
            assert mount["options"][0] == "ro", mount
    assert probe["sockets"] == []


def test_the_state_directory_does_not_show_in_mountinfo(probe: dict[str, Any], home: Path) -> None:
    """The layers of an overlay are visible in its super options; they must not name the user's directories."""
    workspace = [m for m in probe["mounts"] if m["point"] == "/workspace"]
    assert [m["type"] for m in workspace] == ["overlay"]
    assert str(Path.home() / "") not in "".join(workspace[0]["super"]) or str(Path.home()) == "/"


def test_there_is_no_network(probe: dict[str, Any]) -> None:
    assert probe["interfaces"] == ["lo"]
    assert probe["sysfs_interfaces"] == ["lo"]
    assert probe["routes"] == [] and probe["routes6"] == []
    assert set(probe["names"].values()) == {None}, probe["names"]
    assert "worked" not in probe["connections"].values(), probe["connections"]


def test_core_dumps_are_off(probe: dict[str, Any]) -> None:
    assert probe["core"] == [0, 0]
    assert probe["core_pattern"] in ("Permission denied", "Read-only file system")


def test_the_environment_is_ours_alone(probe: dict[str, Any]) -> None:
    assert os.environ["ARSANDBOX_TEST_SECRET"] == SECRET
    assert set(probe["environment"]) <= ENVIRONMENT, set(probe["environment"]) - ENVIRONMENT
    assert SECRET not in json.dumps(probe["environment"])
    assert probe["environment"]["DECLARED"] == "yes"
    assert probe["environment"]["NVIDIA_VISIBLE_DEVICES"] in ("void", "none")


def test_no_descriptor_but_the_standard_ones(probe: dict[str, Any]) -> None:
    assert set(probe["fds"]) == {"0", "1", "2"}, probe["fds"]
    assert probe["fds"]["0"] in ("/dev/null", "/null") or probe["fds"]["0"].startswith("pipe:")
    for number in ("1", "2"):
        assert probe["fds"][number].startswith("pipe:"), probe["fds"]


def test_no_git_directory_and_a_neutral_host_name(probe: dict[str, Any]) -> None:
    assert probe["git"] == []
    assert probe["hostname"] == "sandbox"


def test_cgroup_limits_are_the_ones_asked_for(probe: dict[str, Any]) -> None:
    assert int(probe["memory"]) == 80 * MIB
    if probe["swap"] is not None:  # v1 counts memory and swap together
        assert int(probe["swap"]) in (0, 80 * MIB)
    assert int(probe["pids"]) == 33
    quota = probe["cpu"] if probe["cpu_period"] is None else f"{probe['cpu']} {probe['cpu_period']}"
    assert quota is not None, "no cpu controller is visible"
    used, period = quota.split()
    assert int(used) / int(period) == pytest.approx(0.5)
    assert probe["files"] == [123, 123]


def test_the_cgroup_cannot_be_written(probe: dict[str, Any]) -> None:
    assert probe["cgroup_write"] == []


def test_no_device_but_the_harmless_ones(probe: dict[str, Any]) -> None:
    harmless = {"console", "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin",
                "stdout", "tty", "urandom", "zero"}  # fmt: skip
    assert set(probe["devices"]) <= harmless
    assert probe["kcore"] != "worked"


def test_nothing_is_left_by_a_sandbox_that_cannot_start(box: Any, home: Path) -> None:
    from arsandbox.sandbox.engines.registry import open_engine
    from arsandbox.sandbox.errors import MachineError

    missing = "sha256:" + "0" * 64
    assert not open_engine("docker").has_image(missing)
    with mock.patch.object(boxes, "image_digest", lambda: missing), pytest.raises(MachineError) as caught:
        box("print(1)")
    assert "arsandbox image build cpu" in caught.value.hint
    assert leftovers(home) == []


def test_no_connection_to_the_engine_is_left_open(box: Any) -> None:
    """A loop of thousands of runs must not depend on the garbage collector for its descriptors."""
    import gc

    def sockets() -> int:
        links = [os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
        return sum(os.path.exists(link) and os.readlink(link).startswith("socket:") for link in links)

    with mock.patch.object(boxes, "collect_quietly", lambda: None):
        box("print(1)")  # fills the connection pool
        collect_quietly()
        gc.disable()
        try:
            before = sockets()
            for _ in range(4):
                box("print(1)")
            after = sockets()
        finally:
            collect_quietly()
            gc.enable()
    assert after <= before


def test_the_inodes_of_tmp(box: Any) -> None:
    program = """
        import time
        try:
            for number in range(10**6): open(f"/tmp/file{number}", "w").close()
        except OSError as error:
            print(error, flush=True)
            time.sleep(0.5)
            raise
    """
    done = box(program, disk_inodes=300)
    assert done.reason is Reason.DISK, (done.outcome, done.text)

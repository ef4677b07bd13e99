"""What a program finds inside and what it must not: identity, file systems, network, environment, other sandboxes."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from arsandbox.sandbox.engines.port import ReadOnlyMount
from arsandbox.sandbox.models import Guarantee, Reason
from arsandbox.sandbox.testing.contract import Box, Contract
from arsandbox.sandbox.testing.subject import Subject, Watching, specify

_PROBE = """
import json, os, re, resource, socket
def attempt(call, *arguments):
    try:
        call(*arguments)
        return "worked"
    except OSError as error:
        return error.strerror
def touch(directory):
    path = os.path.join(directory, "probe-was-here")
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
    os.unlink(path)
def descriptors():
    numbers = os.listdir("/proc/self/fd")
    return sorted(int(number) for number in numbers if os.path.lexists(f"/proc/self/fd/{number}"))
def reach(family, address):
    with socket.socket(family) as one:
        one.settimeout(2)
        one.connect(address)
mounts = [line.split(" - ") for line in open("/proc/self/mountinfo").read().splitlines()]
points = {left.split(" ")[4]: left.split(" ") for left, right in mounts}
print(json.dumps({
    "status": dict(re.findall(r"^(\\w+):\\s*(.*)$", open("/proc/self/status").read(), re.M)),
    "uid": os.getresuid(), "groups": os.getgroups(), "setuid": attempt(os.setuid, 0),
    "refused": {p: attempt(touch, p) for p in ("/", "/etc", "/usr", "/usr/bin", "/dev", "/opt", "/var", "/run")},
    "writable": {p: attempt(touch, p) for p in ("/workspace", "/tmp", "/dev/shm")},
    "options": {p: f[5].split(",") for p, f in points.items() if attempt(touch, p) == "worked"},
    "shared": [p for p, f in points.items() if any(x.startswith("shared:") for x in f[6:])],
    "interfaces": sorted(line.split(":")[0].strip() for line in open("/proc/net/dev").read().splitlines()[2:]),
    "reached": [attempt(reach, socket.AF_INET, (a, p)) for a, p in (("169.254.169.254", 80), ("8.8.8.8", 53))],
    "fds": descriptors(), "environment": dict(os.environ), "hostname": socket.gethostname(), "cwd": os.getcwd(),
    "init_environment": open("/proc/1/environ", "rb").read().decode() if os.access("/proc/1/environ", os.R_OK) else "",
    "init_command": open("/proc/1/cmdline", "rb").read().decode(errors="replace"),
    "core": resource.getrlimit(resource.RLIMIT_CORE), "files": resource.getrlimit(resource.RLIMIT_NOFILE),
    "home": {p: os.path.lexists(p) for p in %r},
    "sockets": [p for p in ("/var/run/docker.sock", "/run/docker.sock", "/run/dbus") if os.path.lexists(p)],
    "processes": sum(name.isdigit() for name in os.listdir("/proc")),
}))
"""
SECRET = "hunter2-" + os.urandom(8).hex()


class IsolationContract(Contract):
    """For engines that run processes."""

    @pytest.fixture
    def probe(self, box: Box, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        """What one process in a sandbox says of itself."""
        monkeypatch.setenv("ARSANDBOX_TEST_SECRET", SECRET)
        leak = os.open("/dev/zero", os.O_RDONLY)
        os.set_inheritable(leak, True)
        try:
            private = [str(Path.home() / name) for name in (".ssh", ".bashrc", ".config", ".profile")]
            done = box(_PROBE % (private,), environment={"DECLARED": "yes"}, open_files=123)
        finally:
            os.close(leak)
        assert done.outcome.termination.exit_code == 0, done.text
        found: dict[str, Any] = json.loads(done.text)
        return found

    def test_what_a_process_finds(self, probe: dict[str, Any]) -> None:
        """One sandbox, many properties: containment.md's rows by their numbers in the comments."""
        status = probe["status"]
        sets = {name: int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
        assert set(sets.values()) == {0}, sets  # 1
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")  # 2, 3
        assert len(set(probe["uid"])) == 1 and probe["uid"][0] != 0 and 0 not in probe["groups"]  # 4
        # Refused, or root does not even exist in its user namespace.
        assert probe["setuid"] in ("Operation not permitted", "Invalid argument")
        assert "worked" not in probe["refused"].values(), probe["refused"]  # 10
        assert set(probe["writable"].values()) == {"worked"}, probe["writable"]
        assert {"/workspace", "/tmp", "/dev/shm"} <= set(probe["options"])
        for point, options in probe["options"].items():
            assert {"nosuid", "nodev"} <= set(options), (point, options)  # 11
        assert probe["shared"] == []  # 12
        assert probe["sockets"] == [] and not any(probe["home"].values()), probe["home"]  # 13
        assert probe["fds"] in ([0, 1, 2], [0, 1, 2, 3])  # 13; 3 is the directory that lists them
        assert SECRET not in json.dumps(probe)
        assert probe["environment"]["DECLARED"] == "yes"
        assert probe["core"] == [0, 0]  # 22
        assert probe["files"] == [123, 123]
        assert probe["interfaces"] == ["lo"] and "worked" not in probe["reached"]  # 25
        assert (probe["hostname"], probe["cwd"]) == ("sandbox", "/workspace")
        assert probe["processes"] <= 4  # its own, process 1, and what starts them

    def test_two_sandboxes_at_once_have_different_users(self, subject: Subject, box: Box) -> None:
        if subject.keeps("own_uid") is not Guarantee.ENFORCED:
            pytest.skip(f"declared: a user id of its own is {subject.keeps('own_uid').value}")
        with ThreadPoolExecutor(2) as pool:
            program = "import os, time; print(os.environ['ARSANDBOX_UID'], flush=True); time.sleep(2)"
            first, second = pool.map(lambda _: box(program).text.strip(), range(2))
        assert first.isdigit() and second.isdigit() and first != second

    def test_a_line_of_one_stream_is_not_split_by_the_other(self, box: Box) -> None:
        """As a progress bar does: it stands unfinished on standard error while a number is printed."""
        program = """
            import sys, time
            for percent in range(0, 100, 20):
                print(f"\\r{percent}%", end="", file=sys.stderr, flush=True)
                time.sleep(0.05)
                print(f"METRIC loss={percent}", flush=True)
        """
        lines = box(program).text.replace("\r", "\n").split("\n")
        assert [line for line in lines if "METRIC" in line] == [f"METRIC loss={n}" for n in range(0, 100, 20)]

    def test_a_run_finds_nothing_of_an_earlier_one(self, box: Box) -> None:
        program = """
            import os
            print(sorted(os.listdir("/tmp")), sorted(os.listdir("/dev/shm")), sorted(os.listdir(".")))
            for place in ("/tmp", "/dev/shm", "."): open(f"{place}/left", "w").close()
        """
        first, second = box(program), box(program)
        assert first.text == second.text == "[] [] ['program.py']\n"

    def test_a_socket_in_a_read_only_mount_answers(self, box: Box, places: Callable[[], Path], tmp_path: Path) -> None:
        """How evaluators and proxies talk to a sandbox that has no network."""
        place = tmp_path / "channel"
        place.mkdir(mode=0o755)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(place / "s"))
            (place / "s").chmod(0o666)
            server.listen()
            server.settimeout(60)
            answering = threading.Thread(target=_answer, args=(server,))
            answering.start()
            program = """
                import os, socket
                with socket.socket(socket.AF_UNIX) as one:
                    one.connect("/run/channel/s")
                    one.sendall(b"question")
                    print(one.recv(100).decode())
                try:
                    open("/run/channel/new", "w")
                except OSError as error:
                    print(error.strerror)
            """
            done = box(program, mounts=[ReadOnlyMount(source=place, target="/run/channel")])
            answering.join(60)
        assert done.reason is Reason.COMPLETED, done.text
        assert done.text == "answer to question\nRead-only file system\n"

    def test_two_sandboxes_that_must_meet_run_from_two_threads(
        self, subject: Subject, places: Callable[[], Path], tmp_path: Path
    ) -> None:
        """Each ends only when the other runs, too: no engine may hold a lock while one runs."""
        program = """
            import socket
            with socket.socket(socket.AF_UNIX) as one:
                one.connect("/run/meeting/s")
                print(one.recv(100).decode())
        """
        assert _two_at_once(subject, places, tmp_path, program) == ["both are here"] * 2

    def test_two_sandboxes_at_once_share_nothing(
        self, subject: Subject, places: Callable[[], Path], tmp_path: Path
    ) -> None:
        """Containment, 30: what only one can have, each has, at the same moment."""
        found = [json.loads(text) for text in _two_at_once(subject, places, tmp_path, _TAKING)]
        locks = [one.pop("a lock on a file of the system") for one in found]
        assert {answer for one in found for answer in one.values()} == {"taken"}, found
        # Without an image the system's files are the machine's own, and so are the locks on them: as declared.
        assert (locks == ["taken", "taken"]) is (subject.keeps("image") is Guarantee.ENFORCED), locks


_TAKING = """
    import ctypes, fcntl, json, os, socket, sys
    libc = ctypes.CDLL(None, use_errno=True)
    kept = []

    def number(result):
        if result < 0: raise OSError(ctypes.get_errno(), "refused")

    def taken(call):
        try: kept.append(call())
        except OSError as error: return error.strerror
        return "taken"

    def abstract():
        one = socket.socket(socket.AF_UNIX)
        one.bind("\\0meeting-of-two")
        return one

    file = os.open(os.path.realpath("/usr/bin/env"), os.O_RDONLY)
    exclusive = os.O_CREAT | os.O_EXCL
    found = {
        "an abstract socket": taken(abstract),
        "a file in /tmp": taken(lambda: os.open("/tmp/meeting", exclusive)),
        "a file in /dev/shm": taken(lambda: os.open("/dev/shm/meeting", exclusive)),
        "a file in the workspace": taken(lambda: os.open("meeting", exclusive)),
        "shared memory": taken(lambda: number(libc.shmget(0x5EED, 4096, 0o3600))),
        "a semaphore": taken(lambda: number(libc.semget(0x5EED, 1, 0o3600))),
        "a port": taken(lambda: socket.create_server(("127.0.0.1", 47123))),
        "a lock on a file of the system": taken(lambda: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)),
    }
    with socket.socket(socket.AF_UNIX) as one:
        one.connect("/run/meeting/s")
        assert one.recv(100) == b"both are here"
    print(json.dumps(found))
"""


def _two_at_once(subject: Subject, places: Callable[[], Path], tmp_path: Path, program: str) -> list[str]:
    """What two sandboxes print that both wait, at /run/meeting/s, until the other is there."""
    place = tmp_path / f"meeting-{os.urandom(3).hex()}"
    place.mkdir(mode=0o755)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(place / "s"))
        (place / "s").chmod(0o666)
        server.listen()
        server.settimeout(60)
        meeting = threading.Thread(target=_greet_two, args=(server,))
        meeting.start()

        def one(where: Path) -> str:
            mounts = [ReadOnlyMount(source=place, target="/run/meeting")]
            watching = Watching()
            with subject.engine.sandbox(specify(subject, where, program, mounts=mounts)) as sandbox:
                sandbox.run(watching)
            return watching.output_seen.decode().strip()

        with ThreadPoolExecutor(2) as pool:
            seen = list(pool.map(one, [places(), places()]))
        meeting.join(60)
    return seen


def _answer(server: socket.socket) -> None:
    connection, _ = server.accept()
    with connection:
        connection.sendall(b"answer to " + connection.recv(100))


def _greet_two(server: socket.socket) -> None:
    here = [server.accept()[0], server.accept()[0]]
    for connection in here:
        with connection:
            connection.sendall(b"both are here")

"""Attacks that are particular to an engine without a daemon, each once learned the hard way."""

from __future__ import annotations

import ctypes
import json
import os
import stat
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from arsandbox.policies.model import MIB
from arsandbox.sandbox.engines.registry import open_engine
from arsandbox.sandbox.models import Guarantee, Reason
from arsandbox.sandbox.testing import Contract, Subject
from arsandbox.sandbox.testing.contract import Box

pytestmark = [pytest.mark.engine, pytest.mark.timeout(180)]

FILES_OF_PROC_SYS = ("kernel/core_pattern", "kernel/hostname", "vm/drop_caches", "net/ipv4/ip_forward", "fs/file-max")


class TestAttacks(Contract):
    @pytest.fixture
    def subject(self, own_home: Path) -> Subject:
        engine = open_engine("embedded")
        image = engine.find_image("host")
        assert image is not None
        return Subject("embedded", engine, image)

    def test_no_file_of_proc_sys_can_be_written(self, box: Box) -> None:
        """Started by real root, bwrap's payload could set core_pattern: sysctl files look at the global user id."""
        before = Path("/proc/sys/kernel/core_pattern").read_text()
        program = f"""
            import json, os
            said = {{}}
            for name in {FILES_OF_PROC_SYS!r}:
                for flags in (os.O_WRONLY, os.O_RDWR):
                    try:
                        os.close(os.open("/proc/sys/" + name, flags))
                        said[name] = "opened"
                    except OSError as error:
                        said.setdefault(name, error.strerror)
            print(json.dumps(said))
        """
        said: dict[str, str] = json.loads(box(program).text)
        assert set(said) == set(FILES_OF_PROC_SYS) and "opened" not in said.values(), said
        assert Path("/proc/sys/kernel/core_pattern").read_text() == before

    def test_no_process_of_a_sandbox_is_the_machines_root(self, box: Box) -> None:
        """Seen from the host, where user ids are the true ones; inside everything may be mapped."""
        marker = "true-uid-" + os.urandom(6).hex()
        program = f"""
            import os, sys, time
            if len(sys.argv) == 1:
                os.execv(sys.executable, [sys.executable, "program.py", "{marker}"])
            time.sleep(2)
        """
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(box, program)
            while not (pids := _pids_with(marker)) and not running.done():
                time.sleep(0.02)
            uids = {number for pid in pids for number in _uids(pid)}
            assert running.result().reason is Reason.COMPLETED
        assert uids and 0 not in uids

    def test_process_1_shows_no_environment_and_no_path_of_the_host(
        self, box: Box, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """`--clearenv` cleans only the payload; arguments on bwrap's command line name the host's directories."""
        secret = "hunter2-" + os.urandom(8).hex()
        monkeypatch.setenv("ARSANDBOX_TEST_SECRET", secret)
        program = """
            import json, os
            found = {}
            for pid in filter(str.isdigit, os.listdir("/proc")):
                for name in ("environ", "cmdline"):
                    try:
                        found[f"{pid}/{name}"] = open(f"/proc/{pid}/{name}", "rb").read().decode(errors="replace")
                    except OSError:
                        pass
            print(json.dumps(found))
        """
        done = box(program)
        found: dict[str, str] = json.loads(done.text)
        assert any(name.endswith("cmdline") and text for name, text in found.items()), found
        for name, text in found.items():
            assert secret not in text, name
            for path in (str(done.spec.scratch), str(done.spec.layers[0]), os.environ["ARSANDBOX_HOME"]):
                assert path not in text, (name, path)

    def test_memory_that_no_process_maps(self, subject: Subject, box: Box) -> None:
        """A memfd is in no process's size and outside every file limit: a cgroup counts it, or there is none."""
        program = """
            import os
            kept = []
            for _ in range(300):
                kept.append(os.memfd_create("x"))
                os.write(kept[-1], bytes(1 << 20))
            print("held", len(kept))
        """
        done = box(program, memory_bytes=64 * MIB, open_files=1000)
        if subject.keeps("memory") is Guarantee.ENFORCED:
            assert done.reason is Reason.OOM, (done.outcome, done.text)
        else:
            assert "PermissionError" in done.text, done.text
        assert "held" not in done.text

    def test_memory_in_socket_buffers(self, subject: Subject, box: Box) -> None:
        """Unsent bytes in Unix sockets belong to no process, either; without a cgroup nothing binds them."""
        if subject.keeps("memory") is not Guarantee.ENFORCED:
            assert subject.keeps("memory") is Guarantee.BEST_EFFORT  # and docs/engines.md says which memory is not seen
            pytest.skip("declared: memory is best effort, and socket buffers are what it cannot see")
        program = """
            import socket
            kept, block = [], bytes(1 << 16)
            for _ in range(2000):
                pair = socket.socketpair()
                kept.append(pair)
                for one in pair:
                    one.setblocking(False)
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
                    try:
                        while True: one.send(block)
                    except BlockingIOError: pass
            print("held", len(kept))
        """
        done = box(program, memory_bytes=64 * MIB, open_files=4096)
        assert done.reason is Reason.OOM, (done.outcome, done.text)
        assert done.outcome.usage.peak_memory_bytes <= 65 * MIB

    def test_set_user_id_files_and_whiteouts_left_in_the_workspace(self, box: Box, places: Callable[[], Path]) -> None:
        """What a run leaves gains nothing by its mode, and a forged deletion deletes nothing on the host."""
        program = """
            import os, shutil, stat
            shutil.copy("/bin/true", "tool"); os.chmod("tool", 0o6755)
            try:
                os.mknod("kept.txt.forged", stat.S_IFCHR | 0o600, os.makedev(0, 0))
                print("made a whiteout")
            except OSError as error:
                print(error.strerror)
            try:
                os.mknod("disk", stat.S_IFBLK | 0o600, os.makedev(8, 0))
                print("made a device")
            except OSError as error:
                print(error.strerror)
            os.symlink("/etc/shadow", "shadow")
        """
        done = box(program, files={"kept.txt": "kept"}, collect=["tool", "shadow", "kept.txt.forged"])
        assert done.text.splitlines() == ["Operation not permitted"] * 2
        assert "kept.txt" not in done.changed
        assert (done.spec.layers[0] / "kept.txt").read_text() == "kept"
        assert list(done.collected.files) in ([], ["tool"])  # the link is never followed
        for copy in done.target.rglob("*"):
            assert not copy.stat().st_mode & (stat.S_ISUID | stat.S_ISGID), copy
        assert not any(path.is_symlink() for path in done.target.rglob("*"))

    def test_the_sandbox_of_an_ended_thread_lives_and_that_of_a_dead_process_dies(
        self, box: Box, tmp_path: Path
    ) -> None:
        """`--die-with-parent` follows the thread that spawned: the orphans' contract has both ways at full length.

        Here: the signal is on the launcher before bwrap runs, so that no moment is left in which it is missing.
        """
        program = """
            import ctypes
            found = ctypes.c_int()
            ctypes.CDLL(None).prctl(2, ctypes.byref(found), 0, 0, 0)  # PR_GET_PDEATHSIG, of the payload itself
            print(found.value)
        """
        assert ctypes.CDLL(None).prctl is not None
        done = box(program)
        assert done.text.strip() == "0"  # bound by its PID namespace's process 1, not by a signal that it could clear
        began = time.monotonic()
        assert box("import os; os.fork() or __import__('time').sleep(600)", deadline_s=20).reason is Reason.COMPLETED
        assert time.monotonic() - began < 15


def _pids_with(marker: str) -> list[str]:
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if marker.encode() in (directory / "cmdline").read_bytes():
                found.append(directory.name)
        except OSError:
            continue
    return found


def _uids(pid: str) -> set[int]:
    rows = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {int(number) for row in rows if row.startswith("Uid:") for number in row.split()[1:]}

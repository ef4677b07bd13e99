"""Limits on memory, processes, disk and output, each with its own typed end."""

from __future__ import annotations

import pytest

from arsandbox.policies.model import MIB
from arsandbox.sandbox.models import Guarantee, Reason
from arsandbox.sandbox.testing.contract import Box, Contract
from arsandbox.sandbox.testing.subject import Subject

EAT = """
blocks = []
while True:
    blocks.append(bytearray(b"x") * (4 << 20))
"""


class LimitsContract(Contract):
    """For engines that run processes; what is declared best effort is held to that."""

    def test_memory_of_the_main_process(self, subject: Subject, box: Box) -> None:
        done = box(EAT, memory_bytes=64 * MIB)
        if subject.keeps("memory") is Guarantee.ENFORCED:
            assert done.reason is Reason.OOM, done.outcome
            assert "64.0 MiB" in done.outcome.termination.detail
            assert done.outcome.usage.peak_memory_bytes <= 65 * MIB
        else:
            assert done.reason in (Reason.OOM, Reason.CRASH), done.outcome  # refused to the process, or seen by us
            assert done.outcome.usage.peak_memory_bytes <= 128 * MIB

    def test_memory_of_a_child_while_the_main_process_ends_well(self, subject: Subject, box: Box) -> None:
        program = f"""
            import os, subprocess, sys
            done = subprocess.run([sys.executable, "-c", {EAT!r}])
            print("child", done.returncode)
            sys.exit(0)
        """
        done = box(program, memory_bytes=64 * MIB)
        if subject.keeps("memory") is Guarantee.ENFORCED:
            assert done.reason is Reason.OOM, (done.outcome, done.text)
        else:
            assert done.reason is Reason.OOM or "child 0" not in done.text, (done.outcome, done.text)

    def test_memory_in_tmp_counts(self, box: Box) -> None:
        """A tmpfs is memory: filling it cannot get around the limit."""
        program = """
            import time
            with open("/tmp/a", "wb") as file:
                for _ in range(200): file.write(bytes(1 << 20))
            time.sleep(3)  # an engine that can only look has the time to
        """
        done = box(program, memory_bytes=48 * MIB, tmp_bytes=256 * MIB)
        assert done.reason in (Reason.OOM, Reason.DISK), done.outcome

    def test_just_enough_memory_is_no_oom(self, box: Box) -> None:
        done = box("block = bytearray(b'x') * (30 << 20); print(len(block))", memory_bytes=64 * MIB)
        assert done.reason is Reason.COMPLETED, done.outcome
        assert done.outcome.termination.exit_code == 0

    def test_forking_until_the_kernel_says_no(self, subject: Subject, box: Box) -> None:
        program = """
            import os, time
            while True:
                if not os.fork():
                    time.sleep(30)
                    os._exit(0)
        """
        done = box(program, pids=20)
        assert "Resource temporarily unavailable" in done.text
        if subject.keeps("pids") is Guarantee.ENFORCED:
            assert done.reason is Reason.PIDS, (done.outcome, done.text)
            assert "20" in done.outcome.termination.detail
        else:
            assert done.reason in (Reason.PIDS, Reason.CRASH), (done.outcome, done.text)

    def test_threads_count_as_processes(self, subject: Subject, box: Box) -> None:
        program = """
            import threading, time
            while True:
                threading.Thread(target=time.sleep, args=(30,), daemon=True).start()
        """
        right = {Reason.PIDS} if subject.keeps("pids") is Guarantee.ENFORCED else {Reason.PIDS, Reason.CRASH}
        assert box(program, pids=20).reason in right

    def test_the_bytes_of_the_workspace(self, box: Box) -> None:
        program = """
            with open("big", "wb") as file:
                while True: file.write(bytes(1 << 20)); file.flush()
        """
        done = box(program, disk_bytes=12 * MIB)
        assert done.reason is Reason.DISK, (done.outcome, done.text)
        assert "No space left on device" in done.text
        assert done.outcome.usage.disk_bytes <= 12 * MIB

    def test_the_inodes_of_the_workspace(self, subject: Subject, box: Box) -> None:
        if subject.keeps("disk") is not Guarantee.ENFORCED:
            pytest.skip("declared: the inodes of the workspace are not limited here")
        program = """
            for number in range(10**6): open(f"file{number}", "w").close()
        """
        done = box(program, disk_inodes=300)
        assert done.reason is Reason.DISK, (done.outcome, done.text)
        assert "No space left on device" in done.text
        assert 100 < len(done.changes.paths) < 320

    @pytest.mark.parametrize("directory", ["/tmp", "/dev/shm"])
    def test_a_full_tmpfs_is_disk_however_fast_the_process_ends(self, box: Box, directory: str) -> None:
        """Whatever the program does next: the reason must not depend on who looks first."""
        program = f"""
            with open("{directory}/big", "wb") as file:
                while True: file.write(bytes(1 << 18)); file.flush()
        """
        ends = [box(program, tmp_bytes=2 * MIB, shm_bytes=2 * MIB) for _ in range(3)]
        assert all("No space left on device" in done.text for done in ends)
        assert [done.reason for done in ends] == [Reason.DISK] * 3, [done.outcome.termination for done in ends]

    def test_a_program_that_survives_a_full_disk_completes(self, box: Box) -> None:
        program = """
            import os
            try:
                with open("big", "wb") as file:
                    while True: file.write(bytes(1 << 20)); file.flush()
            except OSError: os.unlink("big")
        """
        assert box(program, disk_bytes=12 * MIB).reason is Reason.COMPLETED

    @pytest.mark.parametrize("line", [b"x" * 65536, b"loss: 1.5\n" * 6000, b"\r" * 65536])
    def test_an_output_flood(self, box: Box, line: bytes) -> None:
        program = f"""
            import os
            block = {line[:10]!r} * {len(line) // 10}
            while True: os.write(1, block)
        """
        done = box(program, output_bytes=256 * 1024)
        assert done.reason is Reason.OUTPUT, done.outcome
        assert len(done.output) == 256 * 1024
        assert done.outcome.wall_s < 10

    def test_the_cpu_quota(self, subject: Subject, box: Box) -> None:
        """Two busy processes for two seconds of wall clock at half a core use about one second."""
        if subject.keeps("cpus") is not Guarantee.ENFORCED:
            pytest.skip("declared: processor time is not limited here")
        program = """
            import os, time
            before = sum(os.times()[:4])
            children = []
            for _ in range(2):
                child = os.fork()
                if not child:
                    end = time.monotonic() + 2
                    while time.monotonic() < end: pass
                    os._exit(0)
                children.append(child)
            for child in children: os.waitpid(child, 0)
            print(sum(os.times()[:4]) - before)
        """
        done = box(program, cpus=0.5)
        assert done.outcome.termination.exit_code == 0, done.text
        assert float(done.text) < 2 * 0.5 * 1.4
        assert done.outcome.usage.cpu_s < 2 * 0.5 * 1.6

    def test_usage_is_measured(self, box: Box) -> None:
        program = """
            import os, time
            block = bytearray(b"x") * (40 << 20)
            for _ in range(3):
                if not os.fork(): time.sleep(1.5); os._exit(0)
            open("big", "wb").write(bytes(3 << 20))
            end = time.process_time() + 0.4
            while time.process_time() < end: pass
            print("x" * 1000)
            while True:
                try: os.wait()
                except ChildProcessError: break
        """
        usage = box(program).outcome.usage
        assert 40 * MIB < usage.peak_memory_bytes <= 96 * MIB
        assert 4 <= usage.peak_pids <= 10
        assert 0.3 < usage.cpu_s < 5
        assert 3 * MIB <= usage.disk_bytes < 8 * MIB
        assert usage.output_bytes == 1001

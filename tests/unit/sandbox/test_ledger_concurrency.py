"""Many writers, one of them killed again and again: what was acknowledged is never lost, the chain stays whole."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from arsandbox.sandbox.ledger import Ledger
from arsandbox.sandbox.record import Record

RECORDS_EACH = 1000
KILLS = 25
SECONDS = 30.0

# Makes a writer of each name and count that it reads, and says its pid; told `wait`, how the last one ended. A writer
# appends its count, and goes on until there is a file `enough`; it says each id after append has returned.
WRITERS = """
import itertools, os, sys
from pathlib import Path
from arsandbox.sandbox.ledger import Ledger
from arsandbox.sandbox.record import Record
directory, acknowledged = Path(sys.argv[1]), os.open(sys.argv[3], os.O_WRONLY | os.O_APPEND)
template = Record.model_validate_json(Path(sys.argv[2]).read_text())

def write(name, count):
    with Ledger.open(directory) as ledger:
        for number in itertools.count():
            if number >= count and (directory / "enough").exists():
                break
            draft = template.model_copy(update={"id": f"{name}-{number:06d}"})
            if number % 4 == 0:
                ledger.begin(draft)
            ledger.append(draft)
            os.write(acknowledged, draft.id.encode() + b"\\n")

for line in sys.stdin:
    if line == "wait\\n":
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
        continue
    name, count = line.split()
    pid = os.fork()
    if pid == 0:
        write(name, int(count))
        os._exit(0)
    print(pid, flush=True)
"""


class Writer:
    """A process that writes; its interpreter has imported everything before, so that starting it takes no time."""

    def __init__(self, directory: Path, template: Path, acknowledged: Path) -> None:
        self._program = subprocess.Popen(
            [sys.executable, "-c", WRITERS, str(directory), str(template), str(acknowledged)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.pid = 0

    def _ask(self, line: str) -> int:
        assert self._program.stdin is not None and self._program.stdout is not None
        self._program.stdin.write(line + "\n")
        self._program.stdin.flush()
        return int(self._program.stdout.readline())

    def start(self, name: str, count: int) -> None:
        self.pid = self._ask(f"{name} {count}")

    def is_alive(self) -> bool:
        """Whether it runs: it is a zombie from its end until wait()."""
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        self.pid, pid = 0, self.pid
        return self._ask("wait") if pid else 0

    def close(self) -> None:
        if self.pid:
            self.kill()
            self.wait()
        self._program.communicate()


def whole_lines(file: Path) -> list[str]:
    """Acknowledgements, each of them one write and so either there or not."""
    return file.read_text().splitlines()


@pytest.mark.timeout(120)
def test_what_was_acknowledged_is_never_lost(tmp_path: Path, make_record: Callable[..., Record]) -> None:
    template, acknowledged = tmp_path / "template.json", tmp_path / "acknowledged"
    template.write_text(make_record().model_dump_json())
    acknowledged.touch()
    first, second, victim = (Writer(tmp_path, template, acknowledged) for _ in range(3))
    steady = (first, second)
    rng = random.Random(20240102)
    began = time.monotonic()
    kills = killed_while_writing = 0
    try:
        for name, writer in zip(("first", "second"), steady, strict=True):
            writer.start(name, RECORDS_EACH)
        while kills < KILLS or any(writer.is_alive() for writer in steady):
            assert time.monotonic() - began < SECONDS * 2, "the writers do not get on"
            if kills >= KILLS:
                (tmp_path / "enough").touch()
                time.sleep(0.05)
                continue
            name = f"victim{kills:03d}"
            victim.start(name, 1_000_000)
            wait_until_it_writes(acknowledged, name, victim)
            time.sleep(rng.uniform(0, 0.02))
            victim.kill()
            assert victim.wait() == -signal.SIGKILL
            killed_while_writing += any(writer.is_alive() for writer in steady)
            kills += 1
        assert [writer.wait() for writer in steady] == [0, 0]
    finally:
        for writer in (*steady, victim):
            writer.close()

    told = whole_lines(acknowledged)
    with Ledger.open(tmp_path) as ledger:
        stored = [record.id for record in ledger.latest()[::-1]]
        assert list(ledger.problems()) == []
        opened = [record.id for record in ledger.open_experiments()]
    assert len(stored) == len(set(stored)) and len(told) == len(set(told))
    assert set(told) <= set(stored), sorted(set(told) - set(stored))[:5]
    # A killed writer may have stored one record that it could not tell of any more, and no other.
    untold = set(stored) - set(told)
    assert len(untold) <= KILLS and all(name.startswith("victim") for name in untold)
    assert len({name.partition("-")[0] for name in untold}) == len(untold)
    # Announced and never ended: only of victims, at most one each, and none that has a record.
    assert len(opened) <= KILLS and all(name.startswith("victim") for name in opened)
    assert not set(opened) & set(stored)
    for name in ("first", "second"):
        ours = [identity for identity in stored if identity.startswith(name)]
        assert len(ours) >= RECORDS_EACH
        assert ours == [f"{name}-{number:06d}" for number in range(len(ours))]
    assert sum(identity.startswith("victim") for identity in told) >= KILLS
    assert killed_while_writing == KILLS
    order = [identity.partition("-")[0] for identity in stored]
    assert order != sorted(order), "they did not write at the same time"
    assert time.monotonic() - began < 60


def wait_until_it_writes(acknowledged: Path, name: str, writer: Writer) -> None:
    end = time.monotonic() + 20
    needle = name.encode() + b"-"
    while time.monotonic() < end:
        with acknowledged.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4000))
            if needle in file.read():
                return
        assert writer.is_alive(), "a writer ended by itself"
        time.sleep(0.002)
    pytest.fail("a writer did not write within 20 s")

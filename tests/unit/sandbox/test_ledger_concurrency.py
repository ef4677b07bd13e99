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

# Appends its count, and goes on until there is a file `enough`; says each id after append has returned.
WRITER = """
import itertools, os, sys
from pathlib import Path
from arsandbox.sandbox.ledger import Ledger
from arsandbox.sandbox.record import Record
directory, name, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
template = Record.model_validate_json(Path(sys.argv[4]).read_text())
with Ledger.open(directory) as ledger:
    for number in itertools.count():
        if number >= count and (directory / "enough").exists():
            break
        draft = template.model_copy(update={"id": f"{name}-{number:06d}"})
        if number % 4 == 0:
            ledger.begin(draft)
        ledger.append(draft)
        os.write(1, draft.id.encode() + b"\\n")
"""


def start(directory: Path, name: str, count: int, template: Path, acknowledged: Path) -> subprocess.Popen[bytes]:
    with acknowledged.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-c", WRITER, str(directory), name, str(count), str(template)], stdout=file
        )


def whole_lines(file: Path) -> list[str]:
    """Acknowledgements, each of them one write and so either there or not."""
    return file.read_text().splitlines()


@pytest.mark.timeout(120)
def test_what_was_acknowledged_is_never_lost(tmp_path: Path, make_record: Callable[..., Record]) -> None:
    template, acknowledged = tmp_path / "template.json", tmp_path / "acknowledged"
    template.write_text(make_record().model_dump_json())
    acknowledged.touch()
    steady = [start(tmp_path, name, RECORDS_EACH, template, acknowledged) for name in ("first", "second")]
    rng = random.Random(20240102)
    began = time.monotonic()
    kills = killed_while_writing = 0
    victim: subprocess.Popen[bytes] | None = None
    try:
        while kills < KILLS or any(process.poll() is None for process in steady):
            assert time.monotonic() - began < SECONDS * 2, "the writers do not get on"
            if kills >= KILLS:
                (tmp_path / "enough").touch()
                time.sleep(0.05)
                continue
            name = f"victim{kills:03d}"
            victim = start(tmp_path, name, 1_000_000, template, acknowledged)
            wait_until_it_writes(acknowledged, name, victim)
            time.sleep(rng.uniform(0, 0.02))
            victim.send_signal(signal.SIGKILL)
            assert victim.wait() == -signal.SIGKILL
            killed_while_writing += any(process.poll() is None for process in steady)
            kills += 1
        assert [process.wait() for process in steady] == [0, 0]
    finally:
        for process in (*steady, *([victim] if victim else [])):
            if process.poll() is None:
                process.kill()
                process.wait()

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


def wait_until_it_writes(acknowledged: Path, name: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 20
    needle = name.encode() + b"-"
    while time.monotonic() < end:
        with acknowledged.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4000))
            if needle in file.read():
                return
        assert process.poll() is None, "a writer ended by itself"
        time.sleep(0.002)
    pytest.fail("a writer did not write within 20 s")

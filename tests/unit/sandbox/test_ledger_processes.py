"""Several processes keep one chain, also where one of them is killed."""

from __future__ import annotations

import multiprocessing
import signal
import subprocess
import sys
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

from arsandbox.sandbox.ledger import Ledger
from arsandbox_fixtures.ledgers import identity, problems
from arsandbox_fixtures.records import MakeRecord

FORK = multiprocessing.get_context("fork")


def _append_many(directory: Path, first: int, count: int, make: MakeRecord) -> None:
    with Ledger.open(directory) as ledger:
        for number in range(first, first + count):
            ledger.append(make(identity(number)))


def _append_together(directory: Path, first: int, count: int, round_of: Barrier, make: MakeRecord) -> None:
    for number in range(first, first + count, 10):  # in rounds, so that both write at the same time in each of them
        round_of.wait(60)
        _append_many(directory, number, 10, make)


def test_two_processes_keep_one_chain(tmp_path: Path, make_record: MakeRecord) -> None:
    round_of = FORK.Barrier(2)
    processes = [
        FORK.Process(target=_append_together, args=(tmp_path, first, 200, round_of, make_record))
        for first in (1000, 500_000)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    with Ledger.open(tmp_path) as ledger:
        records = ledger.latest()[::-1]
        assert ledger.open_experiments() == []
    owners = [int(record.id[16:].partition("-")[0]) < 500_000 for record in records]
    assert len(records) == 400
    assert all(sum(owners[first : first + 20]) == 10 for first in range(0, 400, 20)), "the rounds were not kept"
    assert problems(tmp_path) == []


def _open_at_once(directory: Path, number: int, start: object, make: MakeRecord) -> None:
    start.wait()  # type: ignore[attr-defined]
    _append_many(directory, number, 1, make)


def test_many_processes_may_create_the_ledger_at_once(tmp_path: Path, make_record: MakeRecord) -> None:
    for attempt in range(4):
        place = tmp_path / str(attempt)
        place.mkdir()
        start = FORK.Barrier(6)
        processes = [
            FORK.Process(target=_open_at_once, args=(place, number, start, make_record)) for number in range(6)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
        assert [process.exitcode for process in processes] == [0] * 6
        with Ledger.open(place) as ledger:
            assert len(ledger.latest()) == 6
        assert problems(place) == []


WRITER = """
import itertools, sys
from pathlib import Path
from arsandbox.sandbox.ledger import Ledger
from arsandbox.sandbox.record import Record
record = Record.model_validate_json(sys.stdin.read())
with Ledger.open(Path(sys.argv[1])) as ledger:
    for number in itertools.count(int(sys.argv[2])):
        ledger.append(record.model_copy(update={"id": f"id-{number:09d}"}))
        if number % 10 == 0:
            print(number, flush=True)
"""


def test_a_writer_that_is_killed_leaves_a_whole_chain(tmp_path: Path, make_record: MakeRecord) -> None:
    told = 0
    for attempt in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(attempt * 1_000_000)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as writer:
            assert writer.stdin is not None and writer.stdout is not None
            writer.stdin.write(make_record().model_dump_json().encode())
            writer.stdin.close()
            for _ in range(3 + attempt):
                writer.stdout.readline()
            time.sleep(0.003 * attempt)
            writer.send_signal(signal.SIGKILL)
        told += 10 * (2 + attempt) + 1
        assert problems(tmp_path) == []
        with Ledger.open(tmp_path) as ledger:
            assert len(ledger.latest()) >= told  # what was said to be stored is stored

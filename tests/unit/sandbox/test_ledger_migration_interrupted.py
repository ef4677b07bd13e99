"""A migration that fails, is killed or has company leaves one version or the other."""

from __future__ import annotations

import multiprocessing
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from arsandbox.sandbox.errors import StateError
from arsandbox.sandbox.ledger import Ledger
from arsandbox_fixtures.ledger_version_1 import (
    check_whole,
    look,
    version,
    write_version_1,
)
from arsandbox_fixtures.records import MakeRecord

FORK = multiprocessing.get_context("fork")


# --- interrupted migrations -------------------------------------------------------------------------------


@pytest.mark.parametrize("statement", [1, 2])
def test_an_index_without_its_version_number_is_completed(statement: int, tmp_path: Path) -> None:
    """A file as a migration without a transaction would leave it."""
    stored = write_version_1(tmp_path)
    statements = [
        "CREATE INDEX records_promoted ON records (branch, sequence)"
        " WHERE json_extract(document, '$.promotion.commit') IS NOT NULL",
        "CREATE INDEX records_rerun ON records (json_extract(document, '$.rerun.of'))"
        " WHERE json_extract(document, '$.rerun.of') IS NOT NULL",
    ]
    connection = sqlite3.connect(tmp_path / "ledger.db")
    for text in statements[:statement]:
        connection.execute(text)
    connection.commit()
    connection.close()
    with Ledger.open(tmp_path):
        pass
    check_whole(tmp_path, stored)


@pytest.mark.parametrize(
    "statement", ["CREATE INDEX IF NOT EXISTS records_promoted", "PRAGMA user_version=2", "COMMIT"]
)
def test_a_migration_that_fails_half_way_leaves_the_old_ledger(
    statement: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = write_version_1(tmp_path)
    real = sqlite3.connect

    class Failing(sqlite3.Connection):
        """Fails right after the statement that begins so, as a full disk would."""

        def executescript(self, script: str) -> sqlite3.Cursor:
            parts = script.partition(statement)
            assert parts[1]
            head = parts[0] if statement == "COMMIT" else parts[0] + parts[1] + parts[2].partition(";")[0] + ";"
            super().executescript(head)
            raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: real(*a, **{**k, "factory": Failing}))
    with pytest.raises(StateError, match="full"), Ledger.open(tmp_path):
        pass
    monkeypatch.undo()
    assert version(tmp_path) == 1
    assert look(tmp_path, "SELECT count(*) FROM sqlite_master WHERE name LIKE 'records_promoted'") == [0]
    assert look(tmp_path, "SELECT document FROM records ORDER BY sequence") == stored
    with Ledger.open(tmp_path):
        pass
    check_whole(tmp_path, stored)


STOPPING = """
import os, signal, sqlite3, sys
from pathlib import Path
from arsandbox.sandbox.ledger import Ledger

real = sqlite3.connect

def connect(*arguments, **options):
    connection = real(*arguments, **options)
    steps = [0]
    def progress():
        steps[0] += 1
        if connection.in_transaction and steps[0] >= int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        return 0
    connection.set_progress_handler(progress, 10)
    return connection

sqlite3.connect = connect
with Ledger.open(Path(sys.argv[1])):
    print("migrated", flush=True)
"""


@pytest.mark.parametrize("steps", [1, 30, 100, 200])
def test_a_migration_that_is_killed_half_way_is_done_again(steps: int, tmp_path: Path) -> None:
    stored = write_version_1(tmp_path, extra=300)
    done = subprocess.run(
        [sys.executable, "-c", STOPPING, str(tmp_path), str(steps)], capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, "it ended before it could be killed: " + done.stdout + done.stderr
    assert version(tmp_path) == 1
    with Ledger.open(tmp_path) as ledger:
        assert len(ledger.latest()) == 303
    check_whole(tmp_path, stored)


def test_killing_at_any_moment_leaves_one_version_or_the_other(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom arsandbox.sandbox.ledger import Ledger\n"
        "print('ready', flush=True)\nsys.stdin.readline()\nwith Ledger.open(Path(sys.argv[1])): pass\n"
    )
    for attempt in range(6):
        place = tmp_path / str(attempt)
        place.mkdir()
        stored = write_version_1(place, extra=300)
        with subprocess.Popen(
            [sys.executable, "-c", program, str(place)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdin is not None and process.stdout is not None
            process.stdout.readline()
            process.stdin.write(b"\n")
            process.stdin.flush()
            time.sleep(0.002 * attempt)
            process.kill()
        assert version(place) in (1, 2)
        with Ledger.open(place):
            pass
        check_whole(place, stored)


# --- several at once --------------------------------------------------------------------------------------


def _open_and_append(directory: Path, start: Any, make: MakeRecord, number: int) -> None:
    start.wait()
    with Ledger.open(directory) as ledger:
        ledger.append(make(f"20250102-030405-000-{number:06x}"))


def test_two_processes_may_open_an_old_ledger_at_once(tmp_path: Path, make_record: MakeRecord) -> None:
    for attempt in range(8):
        place = tmp_path / str(attempt)
        place.mkdir()
        stored = write_version_1(place, extra=100)
        start = FORK.Barrier(2)
        processes = [FORK.Process(target=_open_and_append, args=(place, start, make_record, n)) for n in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
        assert [process.exitcode for process in processes] == [0, 0]
        with Ledger.open(place) as ledger:
            documents = list(ledger.documents())
            assert documents[:-2] == stored and len(ledger.latest()) == len(stored) + 2
            assert list(ledger.problems()) == []
        assert version(place) == 2


def test_a_reader_of_the_old_ledger_does_not_stop_the_migration(tmp_path: Path) -> None:
    stored = write_version_1(tmp_path)
    reader = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM records").fetchone() == (3,)
    with Ledger.open(tmp_path):
        pass
    assert reader.execute("SELECT count(*) FROM records").fetchone() == (3,)
    reader.close()
    check_whole(tmp_path, stored)

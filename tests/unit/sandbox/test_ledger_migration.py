"""Ledgers of the first schema are opened, completed and never rewritten."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rfc8785

from arsandbox.cli import boundary
from arsandbox.sandbox.errors import StateError
from arsandbox.sandbox.ledger import Ledger
from arsandbox.sandbox.models import Verdict
from arsandbox.sandbox.record import Record

MakeRecord = Callable[..., Record]
FORK = multiprocessing.get_context("fork")

# The first schema, word for word as it was released; never to be changed with the code.
VERSION_1 = """
CREATE TABLE IF NOT EXISTS records (
    sequence INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    branch TEXT NOT NULL,
    setup TEXT NOT NULL,
    verdict TEXT NOT NULL,
    tree TEXT NOT NULL,
    document TEXT NOT NULL,
    hash TEXT NOT NULL UNIQUE
);
CREATE INDEX IF NOT EXISTS records_by_tree ON records (tree, setup);
CREATE TABLE IF NOT EXISTS open_experiments (id TEXT PRIMARY KEY, draft TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS intents (id TEXT PRIMARY KEY, record TEXT NOT NULL, old_commit TEXT NOT NULL);
CREATE TRIGGER IF NOT EXISTS records_stay BEFORE UPDATE ON records
    BEGIN SELECT RAISE(ABORT, 'records are append-only'); END;
CREATE TRIGGER IF NOT EXISTS records_remain BEFORE DELETE ON records
    BEGIN SELECT RAISE(ABORT, 'records are append-only'); END;
"""
BASELINE, WINNER, LOSER = "20240102-030405-001-000001", "20240102-030405-002-000002", "20240102-030405-003-000003"


def version_1_document(identity: str, verdict: str, **changes: Any) -> dict[str, Any]:
    """A record as the first version wrote it: no conditions, determinism or rerun."""
    return {
        "schema_version": 1,
        "id": identity,
        "repo": "/home/someone/task",
        "branch": "arsandbox/jan02",
        "base_commit": "a" * 40,
        "candidate_tree": "b" * 40,
        "patch": {"sha256": "c" * 64, "files": ["train.py"], "insertions": 1, "deletions": 1},
        "description": "ein Versuch é",
        "image": {"name": "cpu", "digest": "sha256:" + "d" * 64},
        "command": ["python", "train.py"],
        "seed": 1,
        "budget_s": 300.0,
        "grace_s": 30.0,
        "engine": {"name": "docker", "version": "28", "runtime": "runc", "isolation": "container", "privilege": "root"},
        "policy": {"sha256": "e" * 64, "effective": {"network": "none"}},
        "metric": {"name": "val_bpb", "goal": "min", "value": 0.9971, "source": "evaluate"},
        "metrics": {"val_bpb": 0.9971},
        "self_reported": {},
        "trust": "L2",
        "setup_sha256": "f" * 64,
        "data_sha256": None,
        "baseline": None,
        "verdict": verdict,
        "reason": "as measured",
        "findings": [],
        "decision": None,
        "promotion": None,
        "stages": [],
        "change_set": {"paths": [], "refused": [], "truncated": False, "bytes": 0},
        "artifacts": {},
        "timing": {"queued_s": 0.0, "setup_s": 0.1, "run_s": 2.5, "evaluate_s": 0.5, "diff_s": 0.0, "teardown_s": 0.0},
        "usage": {"cpu_s": 1.5, "peak_memory_bytes": 1, "peak_pids": 2, "disk_bytes": 3, "output_bytes": 4, "gpu": {}},
        "exit_code": 0,
        "signal": None,
        "started_at": "2024-01-02T03:04:05.678Z",
        "finished_at": "2024-01-02T03:09:05.678Z",
        "environment": {"arsandbox": "0.1.0", "cpu": "a processor"},
        **changes,
    }


def text_of(document: dict[str, Any]) -> str:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False)


def write_version_1(directory: Path, extra: int = 0) -> list[str]:
    """A ledger of the first schema with three records (and `extra` further ones); returns the stored texts."""
    promotion = {"commit": "1" * 40, "ref": "refs/heads/arsandbox/jan02"}
    documents = [
        version_1_document(BASELINE, "baseline", candidate_tree="9" * 40),
        version_1_document(WINNER, "keep", promotion=promotion, baseline={"experiment": BASELINE, "value": 1.01}),
        version_1_document(LOSER, "discard", candidate_tree="8" * 40, metric={
            "name": "val_bpb", "goal": "min", "value": None, "source": "evaluate"}),
        *(version_1_document(f"20240102-030406-000-{n:06x}", "crash") for n in range(extra)),
    ]  # fmt: skip
    connection = sqlite3.connect(directory / "ledger.db")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.executescript(VERSION_1 + "PRAGMA user_version=1;")
    previous, stored = "0" * 64, []
    for document in documents:
        document["previous_hash"] = previous
        previous = hashlib.sha256(rfc8785.dumps(document)).hexdigest()
        document["ledger_hash"] = previous
        stored.append(text_of(document))
        connection.execute(
            "INSERT INTO records (id, branch, setup, verdict, tree, document, hash) VALUES (?,?,?,?,?,?,?)",
            (document["id"], document["branch"], document["setup_sha256"], document["verdict"],
             document["candidate_tree"], stored[-1], previous),
        )  # fmt: skip
    connection.commit()
    connection.close()
    return stored


def look(directory: Path, query: str) -> list[Any]:
    connection = sqlite3.connect(directory / "ledger.db")
    try:
        return [row[0] if len(row) == 1 else row for row in connection.execute(query)]
    finally:
        connection.close()


def version(directory: Path) -> int:
    return int(look(directory, "PRAGMA user_version")[0])


def check_whole(directory: Path, stored: list[str]) -> None:
    assert version(directory) == 2
    assert look(directory, "SELECT document FROM records ORDER BY sequence") == stored
    indexes = set(look(directory, "SELECT name FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"))
    assert indexes == {"records_by_tree", "records_promoted", "records_rerun"}
    assert look(directory, "PRAGMA integrity_check") == ["ok"]
    with Ledger.open(directory) as ledger:
        assert list(ledger.problems()) == []


def test_the_fixture_is_a_version_1_ledger(tmp_path: Path) -> None:
    stored = write_version_1(tmp_path)
    assert version(tmp_path) == 1
    assert all("determinism" not in text and "conditions" not in text and '"rerun"' not in text for text in stored)
    assert look(tmp_path, "SELECT count(*) FROM sqlite_master WHERE name = 'records_promoted'") == [0]


def test_opening_migrates_and_changes_no_stored_byte(tmp_path: Path) -> None:
    stored = write_version_1(tmp_path)
    with Ledger.open(tmp_path) as ledger:
        assert list(ledger.documents()) == stored
    check_whole(tmp_path, stored)


def test_old_records_are_read_with_the_new_fields_empty(tmp_path: Path) -> None:
    stored = write_version_1(tmp_path)
    with Ledger.open(tmp_path) as ledger:
        records = ledger.latest()[::-1]
        assert [r.id for r in records] == [BASELINE, WINNER, LOSER]
        assert [r.schema_version for r in records] == [1, 1, 1]
        assert all((r.conditions, r.determinism, r.rerun, r.moved_from) == (None, {}, None, None) for r in records)
        assert [r.ledger_hash for r in records] == [json.loads(text)["ledger_hash"] for text in stored]
        assert [r.id for r in ledger.promoted("arsandbox/jan02")] == [WINNER]
        assert ledger.promoted("arsandbox/other") == []
        measured = ledger.measured("9" * 40, "f" * 64)
        assert measured is not None and measured.id == BASELINE
        assert ledger.get("000003").verdict is Verdict.DISCARD
        assert ledger.head() == records[-1].ledger_hash


def test_the_indexes_are_used(tmp_path: Path) -> None:
    write_version_1(tmp_path)
    with Ledger.open(tmp_path):
        pass
    promoted = look(
        tmp_path,
        "EXPLAIN QUERY PLAN SELECT document FROM records WHERE branch = 'x'"
        " AND json_extract(document, '$.promotion.commit') IS NOT NULL ORDER BY sequence",
    )
    assert "records_promoted" in str(promoted), promoted
    rerun = look(tmp_path, "EXPLAIN QUERY PLAN SELECT id FROM records WHERE json_extract(document, '$.rerun.of') = 'x'")
    assert "records_rerun" in str(rerun), rerun


def test_new_records_continue_the_old_chain(tmp_path: Path, make_record: MakeRecord) -> None:
    stored = write_version_1(tmp_path)
    with Ledger.open(tmp_path) as ledger:
        new = ledger.append(make_record("20250102-030405-004-000004"))
        assert new.previous_hash == json.loads(stored[-1])["ledger_hash"]
        assert new.schema_version == 2
        assert list(ledger.problems()) == []
        assert list(ledger.documents())[:3] == stored
    # And what is changed in an old record is still found.
    connection = sqlite3.connect(tmp_path / "ledger.db")
    connection.execute("DROP TRIGGER records_stay")
    connection.execute("UPDATE records SET document = replace(document, '\"seed\":1', '\"seed\":2') WHERE sequence = 2")
    connection.commit()
    connection.close()
    with Ledger.open(tmp_path) as ledger:
        assert list(ledger.problems()) == [f"record 2 ({WINNER}) was changed"]


def test_experiments_and_promotions_that_were_under_way_are_still_known(tmp_path: Path) -> None:
    stored = write_version_1(tmp_path)
    draft = version_1_document("20240102-030407-000-00000a", "interrupted", previous_hash="", ledger_hash="")
    connection = sqlite3.connect(tmp_path / "ledger.db")
    connection.execute("INSERT INTO open_experiments VALUES (?, ?)", (draft["id"], text_of(draft)))
    connection.execute("INSERT INTO intents VALUES (?, ?, ?)", (draft["id"], text_of(draft), "7" * 40))
    connection.commit()
    connection.close()
    with Ledger.open(tmp_path) as ledger:
        assert [record.id for record in ledger.open_experiments()] == [draft["id"]]
        intent = ledger.intent(draft["id"])
        assert intent is not None and (intent.record.id, intent.old_commit) == (draft["id"], "7" * 40)
        ended = ledger.append(intent.record)
        assert ended.schema_version == 1 and ledger.open_experiments() == []
        assert list(ledger.problems()) == []
        assert list(ledger.documents())[:3] == stored


def test_a_second_opening_finds_nothing_to_do(tmp_path: Path) -> None:
    stored = write_version_1(tmp_path)
    with Ledger.open(tmp_path):
        pass
    before = look(tmp_path, "PRAGMA schema_version")
    with Ledger.open(tmp_path):
        pass
    assert look(tmp_path, "PRAGMA schema_version") == before
    check_whole(tmp_path, stored)


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


# --- what is not ours -------------------------------------------------------------------------------------


@pytest.mark.parametrize("newer", [3, 99])
def test_a_newer_ledger_is_refused_untouched_with_exit_5(
    newer: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = write_version_1(tmp_path)
    connection = sqlite3.connect(tmp_path / "ledger.db")
    connection.execute(f"PRAGMA user_version = {newer}")
    connection.close()

    def command() -> None:
        with Ledger.open(tmp_path):
            pass

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        assert boundary.guarded(command) == 5
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    said = capsys.readouterr().err
    assert "newer arsandbox" in said and "fix: pip install -U arsandbox" in said
    assert version(tmp_path) == newer
    assert look(tmp_path, "SELECT document FROM records ORDER BY sequence") == stored


def test_a_damaged_record_does_not_lock_its_ledger_up(tmp_path: Path) -> None:
    """A record that is no JSON any more is named by the chain check, not hidden behind a failed migration."""
    write_version_1(tmp_path)
    connection = sqlite3.connect(tmp_path / "ledger.db")
    connection.execute("DROP TRIGGER records_stay")
    connection.execute("UPDATE records SET document = substr(document, 2) WHERE sequence = 2")
    connection.commit()
    connection.close()
    with Ledger.open(tmp_path) as ledger:
        assert next(iter(ledger.problems())).startswith("record 2")

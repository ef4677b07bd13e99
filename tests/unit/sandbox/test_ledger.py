"""The ledger: one chain whatever happens, and every break of it is found."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arsandbox.sandbox.errors import ArsandboxError, StateError, UsageError
from arsandbox.sandbox.ledger import GENESIS, Ledger, record_hash
from arsandbox.sandbox.models import Usage, Verdict
from arsandbox.sandbox.record import Promotion, Record

MakeRecord = Callable[..., Record]
FORK = multiprocessing.get_context("fork")


def identity(number: int) -> str:
    return f"20240102-030405-{number:03d}-{number:06x}"


def fill(directory: Path, make_record: MakeRecord, count: int = 6) -> list[Record]:
    with Ledger.open(directory) as ledger:
        return [
            ledger.append(make_record(identity(n), description=f"edit {n} é", metrics={"val_bpb": 1 - n / 1000}))
            for n in range(count)
        ]


def problems(directory: Path) -> list[str]:
    with Ledger.open(directory) as ledger:
        return list(ledger.problems())


def tamper(directory: Path, *statements: str, parameters: tuple[object, ...] = ()) -> None:
    """Change the database behind the ledger's back."""
    connection = sqlite3.connect(directory / "ledger.db")
    try:
        made = connection.execute(
            "SELECT type, name FROM sqlite_master WHERE type IN ('trigger', 'index') AND sql IS NOT NULL"
        ).fetchall()
        for kind, name in made:  # triggers refuse changes, and indexes on JSON refuse what is none
            connection.execute(f"DROP {kind} {name}")
        for statement in statements:
            connection.execute(statement, parameters)
        connection.commit()
    finally:
        connection.close()


def test_records_form_a_chain_and_read_back_as_written(tmp_path: Path, make_record: MakeRecord) -> None:
    stored = fill(tmp_path, make_record)
    previous = GENESIS
    for record in stored:
        assert record.previous_hash == previous
        assert record.ledger_hash == record_hash(record) and len(record.ledger_hash) == 64
        previous = record.ledger_hash
    with Ledger.open(tmp_path) as ledger:
        assert ledger.latest() == stored[::-1]
        assert ledger.latest(2) == stored[:-3:-1]
        assert ledger.latest(0) == []
    assert problems(tmp_path) == []


def test_an_empty_ledger_has_no_problems(tmp_path: Path) -> None:
    assert problems(tmp_path) == []


def test_append_is_idempotent_by_id_and_keeps_the_first(tmp_path: Path, make_record: MakeRecord) -> None:
    with Ledger.open(tmp_path) as ledger:
        first = ledger.append(make_record(identity(1)))
        assert ledger.append(make_record(identity(1), verdict=Verdict.DISCARD, reason="other")) == first
        assert ledger.append(first) == first
        assert ledger.latest() == [first]
    assert problems(tmp_path) == []


def test_the_hash_covers_every_field_but_itself(make_record: MakeRecord) -> None:
    base = make_record()
    assert record_hash(base.model_copy(update={"ledger_hash": "x"})) == record_hash(base)
    for change in (
        {"id": "other"}, {"verdict": Verdict.DISCARD}, {"previous_hash": "1" * 64}, {"metrics": {"val_bpb": 0.9972}},
        {"seed": 8}, {"usage": Usage(cpu_s=0.1)}, {"exit_code": 0}, {"description": " "}, {"command": ("python",)},
        {"promotion": Promotion(commit="a" * 40, ref="refs/heads/x")}, {"environment": {"cpu": "x"}},
    ):  # fmt: skip
        assert record_hash(base.model_copy(update=change)) != record_hash(base), change


def test_experiments_are_open_from_begin_to_append(tmp_path: Path, make_record: MakeRecord) -> None:
    draft = make_record(identity(1), verdict=Verdict.INTERRUPTED)
    with Ledger.open(tmp_path) as ledger:
        ledger.begin(draft)
        with pytest.raises(StateError):
            ledger.begin(draft)
        assert ledger.open_experiments() == [draft] and ledger.latest() == []
        final = make_record(identity(1), promotion=Promotion(commit="1" * 40, ref="refs/heads/arsandbox/x"))
        ledger.intend(final, "2" * 40)
        ledger.intend(final, "3" * 40)
    with Ledger.open(tmp_path) as ledger:
        found = ledger.intent(identity(1))
        assert found is not None and (found.record, found.old_commit) == (final, "3" * 40)
        assert ledger.intent(identity(2)) is None
        ledger.forget_intent(identity(1))
        assert ledger.intent(identity(1)) is None
        ledger.forget_intent("never noted")
        ledger.intend(final, "2" * 40)
        ledger.append(final)
        assert ledger.open_experiments() == [] and ledger.intent(identity(1)) is None


def test_a_failed_append_leaves_everything_as_it_was(
    tmp_path: Path, make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Ledger.open(tmp_path) as ledger:
        ledger.begin(make_record(identity(1)))
        monkeypatch.setattr("arsandbox.sandbox.ledger.record_hash", lambda record: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            ledger.append(make_record(identity(1)))
        monkeypatch.undo()
        assert ledger.latest() == [] and len(ledger.open_experiments()) == 1
        ledger.append(make_record(identity(1)))  # the transaction was ended
    assert problems(tmp_path) == []


@pytest.mark.parametrize("changes", [{"seed": 2**53}, {"seed": 2**63}, {"description": "\udcff"}, {"reason": "\ud800"}])
def test_values_that_canonical_json_cannot_hold_fail_as_ours_or_not_at_all(
    changes: dict[str, object], tmp_path: Path, make_record: MakeRecord
) -> None:
    with Ledger.open(tmp_path) as ledger:
        try:
            record = make_record(identity(1), **changes)
            ledger.begin(record)
            ledger.append(record)
        except (ArsandboxError, ValueError) as error:
            assert isinstance(error, ArsandboxError) or type(error).__name__ == "ValidationError"
    assert problems(tmp_path) == []


@pytest.mark.parametrize("statement", ["UPDATE records SET verdict = 'keep'", "DELETE FROM records"])
def test_the_database_itself_refuses_changes(statement: str, tmp_path: Path, make_record: MakeRecord) -> None:
    fill(tmp_path, make_record)
    connection = sqlite3.connect(tmp_path / "ledger.db")
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        connection.execute(statement)
    connection.close()
    assert problems(tmp_path) == []


def test_a_changed_value_is_found(tmp_path: Path, make_record: MakeRecord) -> None:
    fill(tmp_path, make_record)
    tamper(tmp_path, "UPDATE records SET document = replace(document, '\"seed\":7', '\"seed\":8') WHERE sequence = 3")
    assert problems(tmp_path) == [f"record 3 ({identity(2)}) was changed"]


def test_a_change_with_a_fresh_hash_is_found_by_the_next_record(tmp_path: Path, make_record: MakeRecord) -> None:
    stored = fill(tmp_path, make_record)
    forged = stored[2].model_copy(update={"verdict": Verdict.DISCARD})
    forged = forged.model_copy(update={"ledger_hash": record_hash(forged)})
    tamper(
        tmp_path,
        "UPDATE records SET document = ?, hash = ?, verdict = 'discard' WHERE sequence = 3",
        parameters=(forged.model_dump_json(), forged.ledger_hash),
    )
    found = problems(tmp_path)
    assert len(found) == 1 and identity(3) in found[0] and "removed, added or reordered" in found[0]


@pytest.mark.parametrize("removed", [1, 3, 5])
def test_a_removed_row_is_found(removed: int, tmp_path: Path, make_record: MakeRecord) -> None:
    fill(tmp_path, make_record)
    tamper(tmp_path, f"DELETE FROM records WHERE sequence = {removed}")
    found = problems(tmp_path)
    assert len(found) == 1 and identity(removed) in found[0] and "removed" in found[0]


def test_reordered_rows_are_found(tmp_path: Path, make_record: MakeRecord) -> None:
    fill(tmp_path, make_record)
    tamper(
        tmp_path,
        "UPDATE records SET sequence = 100 WHERE sequence = 2",
        "UPDATE records SET sequence = 2 WHERE sequence = 3",
        "UPDATE records SET sequence = 3 WHERE sequence = 100",
    )
    found = problems(tmp_path)
    assert len(found) == 3 and all("reordered" in line for line in found)


def test_an_inserted_row_is_found(tmp_path: Path, make_record: MakeRecord) -> None:
    stored = fill(tmp_path, make_record)
    forged = make_record("forged", previous_hash=stored[-2].ledger_hash)
    forged = forged.model_copy(update={"ledger_hash": record_hash(forged)})
    tamper(
        tmp_path,
        "INSERT INTO records (id, branch, setup, verdict, tree, document, hash)"
        " VALUES ('forged', ?, ?, 'keep', ?, ?, ?)",
        parameters=(
            forged.branch,
            forged.setup_sha256,
            forged.candidate_tree,
            forged.model_dump_json(),
            forged.ledger_hash,
        ),
    )
    assert len(problems(tmp_path)) == 1


@pytest.mark.parametrize(
    ("column", "value"),
    [("id", "forged"), ("hash", "0" * 64), ("verdict", "discard"), ("tree", "9" * 40), ("setup", "9" * 64),
     ("branch", "other")],
)  # fmt: skip
def test_a_changed_column_is_found_since_questions_are_answered_from_it(
    column: str, value: str, tmp_path: Path, make_record: MakeRecord
) -> None:
    fill(tmp_path, make_record)
    tamper(tmp_path, f"UPDATE records SET {column} = '{value}' WHERE sequence = 2")
    found = problems(tmp_path)
    assert found and all(line.startswith(("record 2", "a record before")) for line in found)


@pytest.mark.parametrize(
    "document",
    ["''", "'null'", "'[]'", "'{}'", "'3'", "'{\"ledger_hash\": 1, \"previous_hash\": 2}'", "'x'", "x'00ff'", "7",
     "CAST(x'ff' AS TEXT)", "'" + "[" * 20_000 + "'", "'{\"a\":1e999,\"ledger_hash\":\"\",\"previous_hash\":\"\"}'",
     "'{\"a\":99999999999999999999,\"ledger_hash\":\"\",\"previous_hash\":\"\"}'",
     "'{\"a\":\"\\ud800\",\"ledger_hash\":\"\",\"previous_hash\":\"\"}'"],
)  # fmt: skip
def test_a_row_that_holds_no_record_is_a_problem_and_a_state_error(
    document: str, tmp_path: Path, make_record: MakeRecord
) -> None:
    fill(tmp_path, make_record)
    tamper(tmp_path, f"UPDATE records SET document = {document} WHERE sequence = 2")
    found = problems(tmp_path)
    assert found and "record 2" in found[0]
    with Ledger.open(tmp_path) as ledger, pytest.raises(StateError):
        ledger.latest()


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_changed_byte_of_a_record_is_found(data: st.DataObject, tmp_path: Path, make_record: MakeRecord) -> None:
    place = tmp_path / os.urandom(6).hex()
    place.mkdir()
    text = fill(place, make_record, 1)[0].model_dump_json()
    position = data.draw(st.integers(0, len(text) - 1))
    character = data.draw(st.characters(min_codepoint=33, max_codepoint=126).filter(lambda c: c != text[position]))
    changed = text[:position] + character + text[position + 1 :]
    tamper(place, "UPDATE records SET document = ? WHERE sequence = 1", parameters=(changed,))
    found = problems(place)
    assert found and found[0].startswith("record 1"), (text[position], character)


def test_looking_up_by_the_start_or_end_of_an_id(tmp_path: Path, make_record: MakeRecord) -> None:
    with Ledger.open(tmp_path) as ledger:
        one = ledger.append(make_record("20240102-030405-001-abcdef"))
        two = ledger.append(make_record("20240102-030406-002-123456"))
        assert ledger.get(one.id) == one
        assert ledger.get("20240102-030405") == one
        assert ledger.get("abcdef") == one
        assert ledger.get("002-123456") == two
        with pytest.raises(UsageError, match="several match"):
            ledger.get("20240102")
        for none in ("", "030405", "%", "_", "20240102-03040_", "20240102%abcdef", "\\", "x' OR '1'='1", "é"):
            with pytest.raises(UsageError, match="not in the ledger"):
                ledger.get(none)


def test_measured_is_the_latest_trusted_value_of_the_same_tree_and_setup(
    tmp_path: Path, make_record: MakeRecord
) -> None:
    with Ledger.open(tmp_path) as ledger:
        ledger.append(make_record(identity(1), verdict=Verdict.BASELINE))
        second = ledger.append(make_record(identity(2), verdict=Verdict.DISCARD))
        for number, verdict in enumerate((Verdict.CRASH, Verdict.TAMPERED, Verdict.QUARANTINE, Verdict.NO_METRIC)):
            ledger.append(make_record(identity(10 + number), verdict=verdict))
        ledger.append(make_record(identity(20), candidate_tree="9" * 40))
        ledger.append(make_record(identity(21), setup_sha256="9" * 64))
        assert ledger.measured("b" * 40, "f" * 64) == second
        assert ledger.measured("c" * 40, "f" * 64) is None


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


def test_a_newer_schema_is_refused_untouched(tmp_path: Path, make_record: MakeRecord) -> None:
    fill(tmp_path, make_record)
    connection = sqlite3.connect(tmp_path / "ledger.db")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StateError, match="newer") as caught, Ledger.open(tmp_path):
        pass
    assert "pip install" in caught.value.hint


def test_a_file_that_is_no_database_is_a_state_error(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"not a database, certainly not" * 400)
    with pytest.raises(StateError), Ledger.open(tmp_path):
        pass
    assert (tmp_path / "ledger.db").read_bytes().startswith(b"not a database")


def test_a_directory_that_is_gone_or_in_the_way_is_a_state_error(tmp_path: Path) -> None:
    with pytest.raises(StateError), Ledger.open(tmp_path / "none"):
        pass
    (tmp_path / "ledger.db").mkdir()
    with pytest.raises(StateError), Ledger.open(tmp_path):
        pass


def damage(directory: Path) -> None:
    """Overwrite every page but the first."""
    connection = sqlite3.connect(directory / "ledger.db")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    with (directory / "ledger.db").open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        assert size > 3 * 4096
        file.seek(4096)
        file.write(b"\xa5" * (size - 4096))


@pytest.mark.parametrize(
    "use",
    [
        lambda ledger, record: ledger.latest(),
        lambda ledger, record: ledger.get(record.id),
        lambda ledger, record: ledger.measured(record.candidate_tree, record.setup_sha256),
        lambda ledger, record: ledger.open_experiments(),
        lambda ledger, record: ledger.intent(record.id),
        lambda ledger, record: ledger.append(record),
        lambda ledger, record: ledger.begin(record),
    ],
    ids=["latest", "get", "measured", "open_experiments", "intent", "append", "begin"],
)
def test_a_damaged_file_is_a_state_error_whatever_is_asked(
    use: Callable[[Ledger, Record], object], tmp_path: Path, make_record: MakeRecord
) -> None:
    record = fill(tmp_path, make_record, 40)[0]
    damage(tmp_path)
    with pytest.raises(StateError), Ledger.open(tmp_path) as ledger:
        use(ledger, record)


def test_a_damaged_file_is_a_problem_or_a_state_error_for_verify(tmp_path: Path, make_record: MakeRecord) -> None:
    fill(tmp_path, make_record, 40)
    damage(tmp_path)
    try:
        found = problems(tmp_path)
    except StateError:
        return
    assert found


def test_documents_are_plain_json_with_the_contract_s_names(tmp_path: Path, make_record: MakeRecord) -> None:
    fill(tmp_path, make_record, 1)
    connection = sqlite3.connect(tmp_path / "ledger.db")
    text = connection.execute("SELECT document FROM records").fetchone()[0]
    connection.close()
    names = json.loads(text).keys()
    assert names >= {
        "schema_version", "id", "repo", "branch", "base_commit", "candidate_tree", "patch", "image", "command", "seed",
        "engine", "policy", "metric", "metrics", "baseline", "verdict", "reason", "findings", "decision", "promotion",
        "timing", "usage", "exit_code", "signal", "started_at", "finished_at", "environment", "ledger_hash",
        "previous_hash",
    }  # fmt: skip

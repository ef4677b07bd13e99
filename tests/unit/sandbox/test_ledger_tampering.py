"""Every change of a ledger behind its back is found."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arsandbox.sandbox.errors import StateError
from arsandbox.sandbox.ledger import Ledger, record_hash
from arsandbox.sandbox.models import Verdict
from arsandbox_fixtures.ledgers import fill, identity, problems, tamper
from arsandbox_fixtures.records import MakeRecord


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

"""Ledgers that are newer, no database, gone or damaged."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from arsandbox.sandbox.errors import StateError
from arsandbox.sandbox.ledger import Ledger
from arsandbox.sandbox.record import Record
from arsandbox_fixtures.ledgers import fill, problems
from arsandbox_fixtures.records import MakeRecord


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

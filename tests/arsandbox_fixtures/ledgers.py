"""Ledgers with a few records, and ways to change them behind their back."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from arsandbox.sandbox.ledger import Ledger
from arsandbox.sandbox.record import Record
from arsandbox_fixtures.records import MakeRecord


def identity(number: int) -> str:
    """An id of an experiment."""
    return f"20240102-030405-{number:03d}-{number:06x}"


def fill(directory: Path, make_record: MakeRecord, count: int = 6) -> list[Record]:
    """A ledger of `count` records."""
    with Ledger.open(directory) as ledger:
        return [
            ledger.append(make_record(identity(n), description=f"edit {n} é", metrics={"val_bpb": 1 - n / 1000}))
            for n in range(count)
        ]


def problems(directory: Path) -> list[str]:
    """What the ledger finds wrong with itself."""
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

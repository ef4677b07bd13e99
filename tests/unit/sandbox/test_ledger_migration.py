"""Ledgers of the first schema are opened, completed and never rewritten."""

from __future__ import annotations

import json
import signal
import sqlite3
from pathlib import Path

import pytest

from arsandbox.cli import boundary
from arsandbox.sandbox.ledger import Ledger
from arsandbox.sandbox.models import Verdict
from arsandbox_fixtures.ledger_version_1 import (
    BASELINE,
    LOSER,
    WINNER,
    check_whole,
    look,
    text_of,
    version,
    version_1_document,
    write_version_1,
)
from arsandbox_fixtures.records import MakeRecord


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

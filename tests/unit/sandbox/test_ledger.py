"""The ledger: one chain whatever is appended, and what can be asked of it."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from arsandbox.sandbox.errors import ArsandboxError, StateError, UsageError
from arsandbox.sandbox.ledger import GENESIS, Ledger, record_hash
from arsandbox.sandbox.models import Usage, Verdict
from arsandbox.sandbox.record import Promotion
from arsandbox_fixtures.ledgers import fill, identity, problems
from arsandbox_fixtures.records import MakeRecord


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

"""Ledgers of the first schema, as the first version wrote them."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from pathlib import Path
from typing import Any

import rfc8785

from arsandbox.sandbox.ledger import Ledger

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
    """The text that the first version stored."""
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
    """What the database answers."""
    connection = sqlite3.connect(directory / "ledger.db")
    try:
        return [row[0] if len(row) == 1 else row for row in connection.execute(query)]
    finally:
        connection.close()


def version(directory: Path) -> int:
    """The schema that the database names."""
    return int(look(directory, "PRAGMA user_version")[0])


def check_whole(directory: Path, stored: list[str]) -> None:
    """The ledger is migrated, and holds what was `stored`, byte for byte."""
    assert version(directory) == 2
    assert look(directory, "SELECT document FROM records ORDER BY sequence") == stored
    indexes = set(look(directory, "SELECT name FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"))
    assert indexes == {"records_by_tree", "records_promoted", "records_rerun"}
    assert look(directory, "PRAGMA integrity_check") == ["ok"]
    with Ledger.open(directory) as ledger:
        assert list(ledger.problems()) == []

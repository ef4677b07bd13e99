"""Check that the ledger is whole and that promoted commits are what their records say."""

from __future__ import annotations

import hashlib

from arsandbox.sandbox.errors import RepositoryError
from arsandbox.sandbox.ledger import GENESIS, Ledger
from arsandbox.sandbox.models import Record
from arsandbox.sandbox.promotion import trailers
from arsandbox.sandbox.repository import Repository
from arsandbox.sandbox.workspace.upper import sha256_of


def problems(repository: Repository) -> list[str]:
    """Every break of the chain, and every promoted commit that does not match its record."""
    with Ledger.open(repository.state) as ledger:
        found = list(ledger.problems())
        if not found:
            heads = {GENESIS}  # the ledger's head before each record, as promotion trailers name it
            for record in reversed(ledger.latest()):
                found += _promotion_problems(repository, record, heads)
                found += _patch_problems(repository, record)
                heads.add(record.ledger_hash)
    return found


def _patch_problems(repository: Repository, record: Record) -> list[str]:
    stored = repository.state / "experiments" / record.id / "patch.diff"
    if stored.is_file() and sha256_of(stored) != record.patch.sha256 and record.rerun is None:
        return [f"record {record.id}: its stored patch was changed"]
    return []


def _promotion_problems(repository: Repository, record: Record, known: set[str]) -> list[str]:
    if record.promotion is None:
        return []
    commit = record.promotion.commit
    try:
        tree = repository.objects.tree_of(commit)
        message = repository.objects.git("log", "-1", "--format=%B", commit).decode("utf-8", "replace")
    except RepositoryError:
        return [f"record {record.id}: its promoted commit {commit[:12]} is not in the repository"]
    found = trailers(message)
    lines = []
    if tree != record.candidate_tree:
        lines.append(f"record {record.id}: commit {commit[:12]} has another tree than the measured one")
    if found.get("Arsandbox-Experiment") != record.id:
        lines.append(f"record {record.id}: commit {commit[:12]} lacks its trailer")
    if found.get("Arsandbox-Ledger") not in known:
        lines.append(f"record {record.id}: commit {commit[:12]} names a ledger head that this ledger never had")
    patch = repository.objects.unified_diff(record.base_commit, commit)
    if hashlib.sha256(patch).hexdigest() != record.patch.sha256:
        lines.append(f"record {record.id}: commit {commit[:12]} is another patch than the recorded one")
    return lines

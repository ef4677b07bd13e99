"""Check that the ledger is whole and that promoted commits are what their records say."""

from __future__ import annotations

from arsandbox.sandbox.errors import RepositoryError
from arsandbox.sandbox.ledger import Ledger
from arsandbox.sandbox.models import Record
from arsandbox.sandbox.repository import Repository


def problems(repository: Repository) -> list[str]:
    """Every break of the chain, and every promoted commit that does not match its record."""
    with Ledger.open(repository.state) as ledger:
        found = list(ledger.problems())
        if not found:
            for record in ledger.latest():
                found += _promotion_problems(repository, record)
    return found


def _promotion_problems(repository: Repository, record: Record) -> list[str]:
    if record.promotion is None:
        return []
    commit = record.promotion.commit
    try:
        tree = repository.objects.tree_of(commit)
        message = repository.objects.git("log", "-1", "--format=%B", commit).decode("utf-8", "replace")
    except RepositoryError:
        return [f"record {record.id}: its promoted commit {commit[:12]} is not in the repository"]
    lines = []
    if tree != record.candidate_tree:
        lines.append(f"record {record.id}: commit {commit[:12]} has another tree than the measured one")
    if f"Arsandbox-Experiment: {record.id}" not in message.splitlines():
        lines.append(f"record {record.id}: commit {commit[:12]} lacks its trailer")
    return lines

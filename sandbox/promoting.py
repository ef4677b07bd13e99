"""Promote a winner and write its record in one step that a crash cannot split: noted, moved, recorded."""

from __future__ import annotations

from arsandbox.sandbox import promotion, steps
from arsandbox.sandbox.ledger import Ledger
from arsandbox.sandbox.planning import Champion
from arsandbox.sandbox.record import Promotion, Record
from arsandbox.sandbox.repository import Repository


def promote(
    repository: Repository, ledger: Ledger, record: Record, *, candidate: str, branch: str, champion: Champion
) -> Record | None:
    """Move `branch` from `champion` to a commit of `candidate`'s tree, and append `record` with its promotion.

    None when the branch has moved since `champion` was read: nothing happened, and it is to be decided
    again. A controller that dies in here is finished by recovery.finish_promotion. Raises RepositoryError.
    """
    ready = promotion.prepare(
        repository,
        record,
        candidate=candidate,
        branch=branch,
        parent=champion.commit,
        old=champion.tip,
        ledger_head=ledger.head(),
    )
    record = record.model_copy(update={"promotion": Promotion(commit=ready.commit, ref=ready.ref)})
    ledger.intend(record, ready.old)
    steps.reached("intended")
    if promotion.publish(repository, ready):
        steps.reached("published")
        return ledger.append(record)
    ledger.forget_intent(record.id)
    return None

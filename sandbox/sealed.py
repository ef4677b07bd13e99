"""The sealed text: scored once for a candidate, and compared with what its baseline has there.

Whoever tries often enough fits the held-out text, by luck or by knowing it. Such a gain is not there on a text
that nobody was judged on.
"""

from __future__ import annotations

from arsandbox.sandbox.ledger import Ledger
from arsandbox.sandbox.models import Verdict
from arsandbox.sandbox.record import Record

# The least share of the gain on the held-out text that the sealed one must show.
_LEAST_SHARE = 0.1


def scored(ledger: Ledger, record: Record) -> Record | None:
    """The record that has the sealed value of `record`'s code, or None where it was never scored."""
    name = f"{record.metric.name}.sealed"
    return next((other for other in ledger.latest() if _same(other, record) and name in other.metrics), None)


def compare(ledger: Ledger, record: Record, value: float) -> tuple[str, bool]:
    """(what the sealed `value` says of `record` in words, whether its gain over the baseline is missing there)."""
    before = ledger.get(record.baseline.experiment) if record.baseline is not None else None
    if before is None or before.metric.value is None or record.metric.value is None:
        return "", False
    theirs = scored(ledger, before)
    if theirs is None:
        return f"to compare the sealed value: arsandbox audit {before.id}", False
    sign = 1 if record.metric.goal == "max" else -1
    held = sign * (record.metric.value - before.metric.value)
    hidden = sign * (value - theirs.metrics[f"{record.metric.name}.sealed"])
    words = f"better than the baseline by {held:.4g} on the held-out text, by {hidden:.4g} on the sealed text"
    return words, held > 0 and hidden < _LEAST_SHARE * held


def refuted(ledger: Ledger, record: Record) -> Record | None:
    """The latest audit that found the code of `record` to be deceiving or over-fitted, or None."""
    bad = (Verdict.TAMPERED, Verdict.QUARANTINE)
    return next((r for r in ledger.latest() if r.rerun is not None and r.verdict in bad and _same(r, record)), None)


def _same(one: Record, other: Record) -> bool:
    return (one.candidate_tree, one.setup_sha256) == (other.candidate_tree, other.setup_sha256)

"""One line of the history: what a person looks for first. Plain data, so that listing starts quickly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from arsandbox.sandbox.record import Record


@dataclass(frozen=True)
class Summary:
    """The few facts of a record that a listing shows; seconds and bytes."""

    id: str
    started_at: str
    verdict: str
    value: float | None
    trust: str
    run_s: float
    peak_memory_bytes: int
    what: str

    @classmethod
    def of(cls, record: Record) -> Summary:
        """The summary of `record`."""
        return cls(
            record.id,
            record.started_at,
            record.verdict.value,
            record.metric.value,
            record.trust,
            record.timing.run_s,
            record.usage.peak_memory_bytes,
            record.description or ", ".join(record.patch.files[:3]),
        )

"""Every request of a stage, counted by destination and decision: complete in its sums, bounded in its rows."""

from __future__ import annotations

from arsandbox.sandbox.egress.destinations import Destination
from arsandbox.sandbox.models import EgressDecision, EgressReport, EgressRequest

MOST_ROWS = 200


class Journal:
    """Counts requests; not safe for several threads."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, int, EgressDecision], EgressRequest] = {}
        self._omitted = 0

    def add(self, where: Destination | None, decision: EgressDecision, *, sent: int = 0, received: int = 0) -> None:
        """Count one request; `where` is None when it named no destination. Sizes in bytes."""
        key = (where.host if where else "", where.port if where else 0, decision)
        row = self._rows.get(key)
        if row is None:
            if len(self._rows) >= MOST_ROWS:
                self._omitted += 1
                return
            row = EgressRequest(host=key[0], port=key[1], decision=decision, count=0)
        self._rows[key] = row.model_copy(
            update={
                "count": row.count + 1,
                "sent_bytes": row.sent_bytes + sent,
                "received_bytes": row.received_bytes + received,
            }
        )

    def report(self) -> EgressReport:
        """What was asked for so far, in the order of the first request of each kind."""
        return EgressReport(requests=tuple(self._rows.values()), omitted=self._omitted)

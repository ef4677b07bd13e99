"""The proposer's desk: what it is told for a round, and its answer in the form that is kept."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Callable
from typing import Protocol

from arsandbox.sandbox.engines.port import Engine
from arsandbox.sandbox.events import Listener
from arsandbox.sandbox.loop.journal import Entry
from arsandbox.sandbox.models import Record, Verdict
from arsandbox.sandbox.planning import Plan
from arsandbox.sandbox.proposers.port import Brief, Failure, Proposal, ProposerContext, ProposerSpec, open_proposer
from arsandbox.sandbox.run_directory import run_directory
from arsandbox.sandbox.stage import last_line
from arsandbox.sandbox.state import printable
from arsandbox.sandbox.workspace.layers import LayerStore

_MOST_RECORDS, _MOST_FAILURES, _PROGRAM_BYTES = 50, 5, 64 * 1024
_WORKED = {Verdict.KEEP, Verdict.DISCARD, Verdict.PENDING, Verdict.BASELINE, Verdict.MEASURED, Verdict.INTERRUPTED}


class Trusting(Protocol):
    """What the owner said about the proposer."""

    @property
    def trusted(self) -> bool:
        """Whether it runs on the host."""

    @property
    def credentials(self) -> tuple[str, ...]:
        """Variables of the controller's environment that it gets."""


class Desk:
    """An open proposer, and the place where its briefs are written."""

    def __init__(
        self,
        text: str,
        order: Trusting,
        start: Plan,
        engine: Engine,
        listener: Listener,
        past: Callable[[], list[Record]],
    ) -> None:
        repository = start.repository
        self._start = start
        context = ProposerContext(
            engine=engine,
            repository=repository,
            settings=start.settings,
            image=start.image,
            layers=LayerStore(repository.state / "layers", repository.objects),
            listener=listener,
            run_directory=lambda: run_directory(repository.state),
            past=past,
            trusted=order.trusted,
        )
        self._proposer = open_proposer(ProposerSpec(text, order.credentials), context)

    @property
    def name(self) -> str:
        """The proposer's name."""
        return self._proposer.name

    def propose(self, number: int, champion: str, records: list[Record]) -> Entry | None:
        """The proposal of round `number`, None when there is no more. Raises ArsandboxError."""
        proposal = self._proposer.propose(self._brief(number, champion, records))
        return None if proposal is None else _entry(number, champion, proposal)

    def _brief(self, number: int, champion: str, records: list[Record]) -> Brief:
        program = self._start.repository.objects.read(f"{champion}:program.md") or b""
        shown = [r for r in records if r.part is None and r.verdict is not Verdict.INTERRUPTED][-_MOST_RECORDS:]
        failed = [r for r in shown if r.verdict not in _WORKED][-_MOST_FAILURES:]
        return Brief(
            round=number,
            champion=champion,
            records=tuple(reversed(shown)),
            program=program[:_PROGRAM_BYTES].decode("utf-8", "replace"),
            failures=tuple(self._failure(record) for record in reversed(failed)),
            seed=secrets.randbits(31),
        )

    def _failure(self, record: Record) -> Failure:
        log = self._start.repository.state / "experiments" / record.id / "train.log"
        return Failure(experiment=record.id, verdict=record.verdict, reason=record.reason, tail=last_line(log))


def _entry(number: int, champion: str, proposal: Proposal) -> Entry:
    return Entry(
        number=number,
        champion=champion,
        diff=base64.b64encode(proposal.diff).decode(),
        description=printable(proposal.description),
        findings=proposal.findings,
        verdict=proposal.verdict,
        reason=proposal.reason if proposal.verdict is not None else "",
    )

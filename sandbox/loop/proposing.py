"""The proposer's desk: what it is told for a round, and its answer in the form that is kept."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Callable
from typing import Protocol

from arsandbox.sandbox import noise
from arsandbox.sandbox.engines.port import Engine
from arsandbox.sandbox.events import Listener
from arsandbox.sandbox.ledger import Ledger
from arsandbox.sandbox.loop.journal import Entry
from arsandbox.sandbox.models import Verdict
from arsandbox.sandbox.planning import Plan
from arsandbox.sandbox.proposers.brief import make_brief
from arsandbox.sandbox.proposers.port import (
    DEFAULT_LIMIT_S,
    Brief,
    EditConflict,
    Proposal,
    ProposerContext,
    ProposerSpec,
    open_proposer,
)
from arsandbox.sandbox.record import Record
from arsandbox.sandbox.run_directory import run_directory
from arsandbox.sandbox.state import printable
from arsandbox.sandbox.workspace.layers import LayerStore

# Records among which a brief finds what it tells: the latest ones, confirming runs included.
_LOOKED_THROUGH = 500


class Trusting(Protocol):
    """What the owner said about the proposer."""

    @property
    def trusted(self) -> bool:
        """Whether it runs on the host."""

    @property
    def credentials(self) -> tuple[str, ...]:
        """Variables of the controller's environment that it gets."""

    @property
    def propose_limit_s(self) -> float | None:
        """What one proposal may take; None for the default."""


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
        waiting: Callable[[], list[str]] = list,
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
            waiting=waiting,
            trusted=order.trusted,
        )
        self._proposer = open_proposer(
            ProposerSpec(text, order.credentials, order.propose_limit_s or DEFAULT_LIMIT_S), context
        )

    @property
    def ahead(self) -> int:
        """How many proposals this proposer makes before their turn, unless the user says otherwise."""
        return self._proposer.ahead

    @property
    def queued(self) -> bool:
        """Whether an edit that conflicts waits for the end of the queue, instead of being proposed anew."""
        return self._proposer.queued

    def propose(self, number: int, champion: str, conflict: EditConflict | None = None) -> Entry | None:
        """The proposal of round `number`, None when there is no more. Raises ArsandboxError.

        `conflict` is what was proposed for this round before and did not fit.
        """
        proposal = self._proposer.propose(self._brief(number, champion, conflict))
        if proposal is None:
            return None
        return _entry(number, champion, proposal, self._proposer.name).model_copy(update={"conflict": conflict})

    def _brief(self, number: int, champion: str, conflict: EditConflict | None) -> Brief:
        repository = self._start.repository
        with Ledger.open(repository.state) as ledger:
            latest = [record for record in ledger.latest(_LOOKED_THROUGH) if record.branch == self._start.branch]
            shown = [r for r in latest if r.part is None and r.verdict is not Verdict.INTERRUPTED]
            setup = next((record.setup_sha256 for record in shown if record.setup_sha256), "")
            spread = noise.noise_of(ledger, setup) if setup and self._start.settings.rule.design else None
        return make_brief(
            number, champion, shown, objects=repository.objects, experiments=repository.state / "experiments",
            seed=secrets.randbits(31), sigma=spread.sigma if spread else None, conflict=conflict,
        )  # fmt: skip


def _entry(number: int, champion: str, proposal: Proposal, name: str) -> Entry:
    return Entry(
        number=number,
        champion=champion,
        diff=base64.b64encode(proposal.diff).decode(),
        floating=proposal.floating,
        description=printable(proposal.description),
        findings=proposal.findings,
        verdict=proposal.verdict,
        reason=proposal.reason if proposal.verdict is not None else "",
        log=str(proposal.log or ""),
        proposer=name,
        stage=proposal.stage,
    )

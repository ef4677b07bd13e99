"""Promote a recorded winner by hand, through the same gates as the run that measured it."""

from __future__ import annotations

import shutil

from arsandbox.sandbox import decision, noise, promoting, sealed
from arsandbox.sandbox.decision import Judgement
from arsandbox.sandbox.errors import RefusedError, RepositoryError, UsageError
from arsandbox.sandbox.ledger import Ledger
from arsandbox.sandbox.models import Verdict, utc_now
from arsandbox.sandbox.planning import plan_of
from arsandbox.sandbox.record import Baseline, Record
from arsandbox.sandbox.repository import Repository
from arsandbox.sandbox.requirements import not_promotable
from arsandbox.sandbox.run_directory import run_directory
from arsandbox.sandbox.settings import Options


def promote(repository: Repository, record: Record, *, accept_self_reported: bool) -> Record:
    """Promote the candidate of `record` and return the new ledger record that says so.

    It is judged again, against the champion of today. Raises UsageError for a record that is no
    unpromoted winner, RefusedError when a gate says no, RepositoryError when the branch moves meanwhile.
    """
    if record.verdict is not Verdict.KEEP or record.metric.value is None:
        pending = record.verdict is Verdict.PENDING
        raise UsageError(
            f"experiment {record.id} is no winner ({record.verdict.value})",
            hint=f"arsandbox confirm {record.id}" if pending else "arsandbox history",
        )
    if record.promotion is not None:
        raise UsageError(f"experiment {record.id} was promoted already, to {record.promotion.ref}")
    what = plan_of(repository, record, Options())
    blocked = not_promotable(what.settings.policy, record.trust, accept_self_reported=accept_self_reported)
    if blocked:
        raise RefusedError(f"{record.id} is not promoted: {blocked}", hint="arsandbox policy show")
    if what.refusals:
        raise RefusedError(f"the patch is refused: {what.refusals[0]}")
    champion, rule = what.champion, what.settings.rule
    with Ledger.open(repository.state) as ledger, run_directory(repository.state) as place:
        audit = sealed.refuted(ledger, record)
        if audit is not None:
            raise RefusedError(f"the audit {audit.id} of {record.id} ended as {audit.verdict.value}: {audit.reason}")
        measured = ledger.measured(repository.objects.tree_of(champion.commit), record.setup_sha256)
        if measured is None or measured.metric.value is None:
            raise RefusedError(
                f"the champion {champion.commit[:12]} was never measured under this set-up: the two cannot be compared",
                hint="run the candidate anew: arsandbox run",
            )
        reference = noise.champion_mean(ledger, measured)
        spread = noise.noise_of(ledger, record.setup_sha256) if rule.design else None
        simpler = record.patch.deletions > record.patch.insertions
        judged = decision.screen(record.metric.value, reference, spread, rule, simpler=simpler)
        if judged.verdict is Verdict.PENDING:
            judged = _confirmed(record, measured, judged)
        if judged.verdict is not Verdict.KEEP:
            raise RefusedError(f"it does not beat the champion of today: {judged.reason}")
        now = utc_now()
        fresh = record.model_copy(
            update={
                "id": place.id,
                "description": f"promoted by hand: {record.id}",
                "reason": judged.reason,
                "baseline": Baseline(experiment=measured.id, value=reference),
                "decision": judged.decision,
                "started_at": now,
                "finished_at": now,
                "previous_hash": "",
                "ledger_hash": "",
            }
        )
        source = repository.state / "experiments" / record.id
        shutil.copytree(source, place.keep, dirs_exist_ok=True, symlinks=True)
        ledger.begin(fresh.model_copy(update={"verdict": Verdict.INTERRUPTED}))
        promoted = promoting.promote(
            repository, ledger, fresh, candidate=what.candidate.commit, branch=record.branch, champion=champion
        )
        if promoted is not None:
            return promoted
        ledger.append(fresh.model_copy(update={"promotion": None, "verdict": Verdict.INTERRUPTED}))
    raise RepositoryError(f"{record.branch} moved or was checked out meanwhile; nothing was promoted", hint="try again")


def _confirmed(record: Record, champion: Record, judged: Judgement) -> Judgement:
    """The judgement of a candidate that a test on pairs has confirmed against this very champion."""
    if record.decision is None or not record.decision.pairs:
        raise RefusedError(f"{record.id} is not confirmed: {judged.reason}", hint=f"arsandbox confirm {record.id}")
    if record.baseline is None or record.baseline.experiment != champion.id:
        raise RefusedError(
            f"{record.id} was confirmed against another champion than today's {champion.id}",
            hint="run the candidate anew: arsandbox run --confirm",
        )
    # Why it was not promoted then is no reason of the promotion now.
    return Judgement(Verdict.KEEP, record.reason.partition("; not promoted: ")[0], record.decision)

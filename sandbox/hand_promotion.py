"""Promote a recorded winner by hand, through the same gates as the run that measured it."""

from __future__ import annotations

import shutil

from arsandbox.sandbox import candidate as candidates
from arsandbox.sandbox import decision, prepared, promotion, rebuild
from arsandbox.sandbox.errors import RefusedError, RepositoryError, UsageError
from arsandbox.sandbox.experiment import champion_of
from arsandbox.sandbox.ledger import Ledger
from arsandbox.sandbox.models import Baseline, Promotion, Record, Verdict, utc_now
from arsandbox.sandbox.repository import Repository
from arsandbox.sandbox.requirements import not_promotable
from arsandbox.sandbox.run_directory import run_directory


def promote(repository: Repository, record: Record, *, accept_self_reported: bool) -> Record:
    """Promote the candidate of `record` and return the new ledger record that says so.

    It is judged again, against the champion of today. Raises UsageError for a record that is no
    unpromoted winner, RefusedError when a gate says no, RepositoryError when the branch moves meanwhile.
    """
    if record.verdict is not Verdict.KEEP or record.metric.value is None:
        raise UsageError(f"experiment {record.id} is no winner ({record.verdict.value})", hint="arsandbox history")
    if record.promotion is not None:
        raise UsageError(f"experiment {record.id} was promoted already, to {record.promotion.ref}")
    settings = rebuild.settings_of(repository, record)
    blocked = not_promotable(settings.policy, record.trust, accept_self_reported=accept_self_reported)
    if blocked:
        raise RefusedError(f"{record.id} is not promoted: {blocked}", hint="arsandbox policy show")
    candidate = rebuild.candidate_of(repository, record)
    refusals = candidates.refusals(candidate, repository.objects, settings.rules, settings.policy)
    if refusals:
        raise RefusedError(f"the patch is refused: {refusals[0]}")
    fixed, _ = prepared.fixed_tree(repository.objects, record.base_commit, settings, repository.state / "fixed")
    champion = champion_of(repository, record.base_commit, record.branch, settings, fixed)
    with Ledger.open(repository.state) as ledger, run_directory(repository.state) as place:
        measured = ledger.measured(repository.objects.tree_of(champion.commit), record.setup_sha256)
        if measured is None or measured.metric.value is None:
            raise RefusedError(
                f"the champion {champion.commit[:12]} was never measured under this set-up: the two cannot be compared",
                hint="run the candidate anew: arsandbox run",
            )
        judged = decision.judge(
            record.metric.value,
            measured.metric.value,
            name=record.metric.name,
            goal=record.metric.goal,
            rule=settings.project.decision.rule,
            min_delta=settings.project.decision.min_delta,
        )
        if judged.verdict is not Verdict.KEEP:
            raise RefusedError(f"it does not beat the champion of today: {judged.reason}")
        now = utc_now()
        fresh = record.model_copy(
            update={
                "id": place.id,
                "description": f"promoted by hand: {record.id}",
                "reason": judged.reason,
                "baseline": Baseline(experiment=measured.id, value=measured.metric.value),
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
        ready = promotion.prepare(
            repository,
            fresh,
            candidate=candidate.commit,
            branch=record.branch,
            parent=champion.commit,
            old=champion.tip,
            ledger_head=ledger.head(),
        )
        fresh = fresh.model_copy(update={"promotion": Promotion(commit=ready.commit, ref=ready.ref)})
        ledger.intend(fresh, ready.old)
        if promotion.publish(repository, ready):
            return ledger.append(fresh)
        ledger.forget_intent(fresh.id)
        ledger.append(fresh.model_copy(update={"promotion": None, "verdict": Verdict.INTERRUPTED}))
    raise RepositoryError(f"{record.branch} moved or was checked out meanwhile; nothing was promoted", hint="try again")

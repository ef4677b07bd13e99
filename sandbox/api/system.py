"""SystemExperiment: better a project by one metric, an edit at a time, each measured in sandboxes.

The user's working tree is never written: an improvement is a commit on a branch of its own that holds the
edit and nothing else, and a revert has nothing to undo.
"""

from __future__ import annotations

import functools
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from arsandbox.sandbox import confirmation, experiment, recovery
from arsandbox.sandbox.api.evaluating import Evaluation, evaluate_result
from arsandbox.sandbox.api.history import FILE_NAME
from arsandbox.sandbox.api.opening import Target, target
from arsandbox.sandbox.api.runs import explained
from arsandbox.sandbox.errors import ArsandboxError, ConflictError, UsageError
from arsandbox.sandbox.events import Listener
from arsandbox.sandbox.ledger import Ledger
from arsandbox.sandbox.models import Finding, Goal, Model, Verdict
from arsandbox.sandbox.planning import Plan, plan_of
from arsandbox.sandbox.proposers.brief import PROGRAM, make_brief
from arsandbox.sandbox.proposers.port import (
    DEFAULT_LIMIT_S,
    Proposal,
    Proposer,
    ProposerContext,
    ProposerSpec,
    open_proposer,
)
from arsandbox.sandbox.reapply import fitted, lineage
from arsandbox.sandbox.record import Record
from arsandbox.sandbox.run_directory import run_directory
from arsandbox.sandbox.state import printable
from arsandbox.sandbox.workspace.layers import LayerStore

DEFAULT_TAG = "system"
_LONGEST_HYPOTHESIS = 200
Status = Literal["baseline", "committed", "reverted", "indeterminate", "rejected", "failed", "exhausted", "error"]


class SystemStatus(Model):
    """What one round came to, in numbers and one sentence.

    `committed`: better, and `commit` holds it; `reverted`: not better; `indeterminate`: nothing can be told;
    `rejected`: the edit may not be made; `failed`: it did not run; `exhausted`: nothing more is proposed; `error`:
    this machine or the call is at fault.
    """

    status: Status
    message: str
    hypothesis: str = ""
    description: str = ""
    metric: str = ""
    evaluation: Evaluation | None = None
    commit: str | None = None
    branch: str | None = None
    experiment: str = ""
    duration_s: float = 0.0


class SystemExperiment:
    """Rounds of: propose an edit, measure it in a sandbox, commit it or not.

    `target` is a git repository; `metric` is unit_pass_rate, coverage, val_bpb or any name that its run reports;
    `goal` says whether lower or higher is better (by the name where it is not said); `budget` is what one run may
    take; `workspace`, where given, gets a results.jsonl and is looked at for a program.md first. `propose` is what
    `arsandbox loop --propose` takes. Numbers that the tested code itself reports (test suites) are trust level L1.
    """

    def __init__(
        self,
        target: str | os.PathLike[str],
        metric: str = "val_bpb",
        budget: str | float = 300.0,
        workspace: str | os.PathLike[str] | None = None,
        *,
        propose: str = "sweep",
        goal: Goal | None = None,
        image: str | None = None,
        tag: str = DEFAULT_TAG,
        engine: str | None = None,
        trusted_proposer: bool = False,
        credentials: tuple[str, ...] = (),
        propose_limit_s: float = DEFAULT_LIMIT_S,
        listener: Listener | None = None,
    ) -> None:
        self.path, self.metric, self.budget, self.goal = Path(target), metric, budget, goal
        self.workspace = None if workspace is None else Path(workspace)
        self._image, self._tag, self._engine_name, self._listener = image, tag, engine, listener
        self._spec = ProposerSpec(propose, credentials, propose_limit_s)
        self._trusted = trusted_proposer
        self._proposer: Proposer | None = None
        self._round = 0

    @property
    def hypothesis(self) -> str:
        """The first real line of program.md (no heading, list mark or rule), or a generic sentence."""
        for place in (self.workspace, self.path):
            try:
                text = (place / PROGRAM).read_text("utf-8", "replace") if place is not None else ""
            except OSError:
                continue
            for line in text[:65_536].splitlines():
                words = printable(line.strip().lstrip("#>*-=+_ \t`")).strip()
                if words and not line.lstrip().startswith(("#", "```", "<!--")):
                    return words[:_LONGEST_HYPOTHESIS]
        return f"a change to {self.path.resolve().name} improves {self.metric}"

    def baseline(self) -> SystemStatus:
        """Measure the champion where it has no recorded value, and say it."""

        def measured(began: float) -> SystemStatus:
            wanted = self._target()
            plan = wanted.plan(commit="HEAD")
            plan = wanted.plan(base=plan.champion.commit, commit=plan.champion.commit)
            record = experiment.run(plan, wanted.engine(), wanted.listener)
            return self._told(record, None, plan, "the champion as it is", began)

        return self._guarded(measured)

    def run(self) -> SystemStatus:
        """One round. Every failure is a status; only KeyboardInterrupt is raised."""
        done = self._guarded(self._one_round)
        self._write(done)
        return done

    def rounds(self, count: int) -> Iterator[SystemStatus]:
        """At most `count` rounds; ends early when nothing more is proposed or an error would repeat itself."""
        for _ in range(count):
            done = self.run()
            yield done
            if done.status in ("exhausted", "error"):
                return

    def _guarded(self, work: Callable[[float], SystemStatus]) -> SystemStatus:
        began = time.monotonic()
        try:
            return work(began)
        except (ArsandboxError, OSError, ValueError) as error:
            return SystemStatus(
                status="error", message=explained(error), hypothesis=self.hypothesis, metric=self.metric,
                duration_s=round(time.monotonic() - began, 3),
            )  # fmt: skip

    def _target(self) -> Target:
        return target(
            self.path, metric=self.metric, goal=self.goal, budget=self.budget, image=self._image, tag=self._tag,
            engine=self._engine_name, listener=self._listener,
        )  # fmt: skip

    def _one_round(self, began: float) -> SystemStatus:
        wanted = self._target()
        plan = wanted.plan(commit="HEAD")
        if not self._round:
            for line in recovery.recover(plan.repository.state, wanted.engine()):
                wanted.listener.note(f"cleaned up after a dead controller: {line}")
            plan = wanted.plan(commit="HEAD")  # a promotion may have been completed just now
        champion = plan.champion.commit
        with Ledger.open(plan.repository.state) as ledger:
            past = [record for record in ledger.latest() if record.branch == plan.branch]
        self._round += 1
        own = (record for record in past if record.part is None and record.rerun is None)
        ended = next((record for record in own if record.verdict is not Verdict.INTERRUPTED), None)
        if ended is not None and ended.verdict is Verdict.PENDING:
            return self._confirmed(wanted, plan, ended, began)
        if self._proposer is None:
            self._proposer = open_proposer(self._spec, self._context(plan, past))
        brief = make_brief(
            self._round, champion, past, objects=plan.repository.objects,
            experiments=plan.repository.state / "experiments", seed=secrets.randbits(31),
        )  # fmt: skip
        proposal = self._proposer.propose(brief)
        if proposal is None:
            return self._status("exhausted", "nothing more is proposed", Proposal(), began)
        if proposal.verdict is not None:
            status: Status = "rejected" if proposal.verdict is Verdict.REJECTED else "failed"
            return self._status(status, proposal.reason, proposal, began)
        return self._measured(wanted, champion, proposal, began)

    def _confirmed(self, wanted: Target, plan: Plan, pending: Record, began: float) -> SystemStatus:
        """The result of a process that died before it was confirmed: that is finished before anything is proposed."""
        left = plan_of(plan.repository, pending, wanted.request(promote=True).options)
        try:
            record = confirmation.confirm(left, pending, wanted.engine(), wanted.listener)
        except ConflictError as conflict:
            record = self._conflicting(wanted, pending, conflict)
        return self._told(record, None, left, pending.description, began)

    def _measured(self, wanted: Target, champion: str, proposal: Proposal, began: float) -> SystemStatus:
        unchanged = self._unchanged(wanted, champion, proposal.description)
        objects, now = unchanged.repository.objects, unchanged.base
        made_on = lineage(objects, unchanged.repository.head(), now) if proposal.floating else (champion,)
        try:
            edit = fitted(objects, proposal.diff, now, made_on, name=proposal.description or "the proposal")
        except UsageError as error:  # it is no patch, or conflicts with what another controller promoted meanwhile
            return self._status("rejected", error.message, proposal, began)
        if edit.candidate.is_base:
            return self._status("rejected", f"the champion {now[:12]} holds this change already", proposal, began)
        plan, engine = unchanged.with_edit(edit, proposal.findings), wanted.engine()
        record = experiment.run(plan, engine, wanted.listener)
        if record.verdict is Verdict.PENDING:
            try:
                record = confirmation.confirm(plan, record, engine, wanted.listener)
            except ConflictError as conflict:
                record = self._conflicting(wanted, record, conflict)
        return self._told(record, proposal, plan, proposal.description, began)

    def _unchanged(self, wanted: Target, champion: str, description: str) -> Plan:
        """The plan that changes nothing of the champion of now, which another controller may have moved."""
        while True:
            plan = wanted.plan(promote=True, base=champion, commit=champion, description=description)
            if plan.champion.commit == champion:
                return plan
            champion = plan.champion.commit

    def _conflicting(self, wanted: Target, pending: Record, conflict: ConflictError) -> Record:
        """Record that a pending edit does not fit the champion any more, so that the next round is another one."""
        plan = self._unchanged(wanted, pending.base_commit, pending.description)
        finding = Finding(code="edit_conflict", detail=conflict.message)
        reason = f"{pending.id} won, but does not fit the champion of now: {conflict.message}"
        engine, listener = wanted.engine(), wanted.listener
        return experiment.without_run(plan, Verdict.REJECTED, reason, (finding,), engine, listener)

    def _told(
        self, record: Record, proposal: Proposal | None, plan: Plan, description: str, began: float
    ) -> SystemStatus:
        compared = record.baseline.value if record.baseline else None
        evaluation = evaluate_result(record.metric.value, compared, goal=record.metric.goal, name=record.metric.name)
        status: Status = "failed"
        message = f"{record.verdict.value}: {record.reason}"
        if record.verdict is Verdict.BASELINE:
            status, message = "baseline", record.reason
        elif record.promotion is not None:
            status, message = "committed", f"{evaluation.message}; committed to {plan.branch}"
        elif record.verdict in (Verdict.REJECTED, Verdict.TAMPERED, Verdict.QUARANTINE):
            status = "rejected"
        elif record.verdict is Verdict.KEEP:
            status, message = "indeterminate", record.reason
        elif record.verdict is Verdict.DISCARD:
            status, message = "reverted", f"{evaluation.message}; not committed"
        elif record.verdict in (Verdict.PENDING, Verdict.NO_METRIC, Verdict.INVALID):
            status, message = "indeterminate", f"indeterminate: {record.reason}"
        return self._status(
            status, message, proposal or Proposal(description=description), began, record=record,
            evaluation=evaluation, branch=plan.branch,
        )  # fmt: skip

    def _status(
        self, status: Status, message: str, proposal: Proposal, began: float, *, record: Record | None = None,
        evaluation: Evaluation | None = None, branch: str | None = None,
    ) -> SystemStatus:  # fmt: skip
        promotion = record.promotion if record else None
        return SystemStatus(
            status=status,
            message=message,
            hypothesis=self.hypothesis,
            description=proposal.description,
            metric=self.metric,
            evaluation=evaluation,
            commit=promotion.commit if promotion else None,
            branch=branch,
            experiment=record.id if record else "",
            duration_s=round(time.monotonic() - began, 3),
        )

    def _context(self, plan: Plan, past: list[Record]) -> ProposerContext:
        return ProposerContext(
            engine=self._target().engine(),
            repository=plan.repository,
            settings=plan.settings,
            image=plan.image,
            layers=LayerStore(plan.repository.state / "layers", plan.repository.objects),
            listener=self._target().listener,
            run_directory=functools.partial(run_directory, plan.repository.state),
            past=lambda: past,
            trusted=self._trusted,
        )

    def _write(self, done: SystemStatus) -> None:
        """Append to the workspace's results.jsonl; a full disk costs the line, not the round."""
        if self.workspace is None:
            return
        evaluation = done.evaluation
        row = {
            "id": done.experiment,
            "status": done.status,
            "metric": done.metric,
            "value": evaluation.value if evaluation else None,
            "description": done.description,
            "reason": done.message,
            "commit": done.commit,
        }
        try:
            self.workspace.mkdir(parents=True, exist_ok=True)
            with (self.workspace / FILE_NAME).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            self._target().listener.note(f"{self.workspace / FILE_NAME}: {error.strerror}")


def experiment_loop(
    target: str | os.PathLike[str] = ".", *, metric: str = "val_bpb", propose: str = "sweep", count: int = 10,
    budget: str | float = 300.0, goal: Goal | None = None, workspace: str | os.PathLike[str] | None = None,
    image: str | None = None, tag: str = DEFAULT_TAG, engine: str | None = None, listener: Listener | None = None,
) -> Iterator[SystemStatus]:  # fmt: skip
    """At most `count` rounds of SystemExperiment, each as it ends.

    Called again after a crash it goes on from what the ledger holds (docs/python-api.md).
    """
    system = SystemExperiment(
        target, metric, budget, workspace, propose=propose, goal=goal, image=image, tag=tag, engine=engine,
        listener=listener,
    )  # fmt: skip
    return system.rounds(count)

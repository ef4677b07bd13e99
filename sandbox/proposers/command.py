"""Any command as a proposer, inside a sandbox under the `propose` policy: an overlay over the champion."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from arsandbox.sandbox.egress.destinations import Allowlist
from arsandbox.sandbox.engines.port import ReadOnlyMount
from arsandbox.sandbox.models import Finding, Reason, Stage
from arsandbox.sandbox.proposers import overlay
from arsandbox.sandbox.proposers.brief import write_folder
from arsandbox.sandbox.proposers.credentials import Credentials
from arsandbox.sandbox.proposers.port import Brief, Proposal, ProposerContext, ProposerSpec
from arsandbox.sandbox.run_directory import RunDirectory
from arsandbox.sandbox.stage import StagePlan, StageRun, last_line, run_stage

BRIEF_TARGET = "/run/arsandbox-brief"
LOG_NAME = "propose.log"
DESCRIPTION = re.compile(r"DESCRIPTION[:=]\s*(.+)")


class CommandProposer:
    """Runs `command_of(brief folder, champion)` in a fresh sandbox each round and reads the edit from its overlay."""

    def __init__(
        self, name: str, command_of: Callable[[str, str], tuple[str, ...]], spec: ProposerSpec, context: ProposerContext
    ) -> None:
        self._name, self._command_of, self._spec, self._context = name, command_of, spec, context
        self._policy = context.settings.policy_for("propose")
        self._credentials = Credentials.from_environment(spec.credentials, self._policy)

    @property
    def name(self) -> str:
        """What the record's reader should call it."""
        return self._name

    # A command is an agent more often than not: it is to know how its last edit did, and that it conflicted.
    ahead, queued = 0, False

    def propose(self, brief: Brief) -> Proposal | None:
        """One round. How the command failed is in the proposal; raises ArsandboxError for our own failures."""
        context = self._context
        with context.run_directory() as place:
            folder = place.scratch / "brief"
            write_folder(folder, brief, context.repository.objects, context.settings)
            plan = self._plan(brief, folder, place)
            labels = place.labels(plan.limit_s)
            try:
                with run_stage(
                    context.engine, plan, experiment=place.id, scratch=place.scratch, labels=labels,
                    listener=context.listener,
                ) as run:  # fmt: skip
                    stage = self._credentials.out_of(run.record)
                    found = self._read(run, brief, place).model_copy(update={"stage": stage})
            finally:
                self._credentials.keep_log(plan.log, place.keep / LOG_NAME)
            description = described(self._name, place.keep / LOG_NAME)
            return found.model_copy(update={"log": place.keep / LOG_NAME, "description": description})

    def _plan(self, brief: Brief, folder: Path, place: RunDirectory) -> StagePlan:
        settings = self._context.settings
        return StagePlan(
            stage=Stage.PROPOSE,
            image=self._context.image,
            command=self._command_of(BRIEF_TARGET, brief.champion),
            environment={
                **settings.project.environment,
                **told(brief, BRIEF_TARGET),
                **self._credentials.environment(),
            },
            layers=self._context.layers.layers(brief.champion, without=settings.heldout).paths,
            limits=self._policy.limits,
            limit_s=min(self._spec.limit_s, self._policy.limits.wall_s),
            log=place.scratch / LOG_NAME,  # kept only when the credentials are out of it
            mounts=(ReadOnlyMount(source=folder, target=BRIEF_TARGET),),
            egress=Allowlist.of(self._policy),
        )

    def _read(self, run: StageRun, brief: Brief, place: RunDirectory) -> Proposal:
        ended = run.outcome.termination
        if ended.reason is not Reason.COMPLETED:
            detail = self._credentials.redact(f"{ended.detail}: {last_line(place.scratch / LOG_NAME)}".encode())
            said = detail.decode("utf-8", "replace").removesuffix(": ")
            return Proposal(termination=ended.model_copy(update={"detail": said}))
        context = self._context
        findings: tuple[Finding, ...] = ()
        try:
            diff, findings = overlay.read_edit(
                run.sandbox, brief.champion, context.repository.objects, context.settings.rules, self._policy,
                place.scratch,
            )  # fmt: skip
        except overlay.Unusable as error:
            return Proposal(refusal=self._credentials.redact(str(error).encode()).decode())
        return guarded(diff, findings, self._credentials)


def guarded(diff: bytes, findings: tuple[Finding, ...], credentials: Credentials) -> Proposal:
    """A proposal, refused where its diff or a changed path would store a credential."""
    held = credentials.held_by(diff) or credentials.held_by("".join(f.detail for f in findings).encode())
    if held is not None:
        return Proposal(refusal=f"the edit holds the value of the credential {held}")
    return Proposal(diff=diff, findings=findings)


def told(brief: Brief, folder: str) -> dict[str, str]:
    """The variables that every proposing command gets."""
    return {
        "ARSANDBOX_BRIEF": folder,
        "ARSANDBOX_ROUND": str(brief.round),
        "ARSANDBOX_SEED": str(brief.seed),
        "ARSANDBOX_CHAMPION": brief.champion,
    }


def described(name: str, log: Path) -> str:
    """The record's description: what the command printed as `DESCRIPTION: ...` last, else its name."""
    from arsandbox.sandbox.proposers.brief import tail

    for line in reversed(tail(log).split("\n")):
        found = DESCRIPTION.fullmatch(line.strip())
        if found is not None:
            return f"{name}: {found[1][:200]}"
    return name

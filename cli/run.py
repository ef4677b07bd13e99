"""`arsandbox run`: one experiment."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from arsandbox.cli.boundary import last_words
from arsandbox.cli.options import (
    Credentials,
    EngineName,
    Experiment,
    Json,
    Network,
    PolicyName,
    ProposeTimeout,
    RecordedEngine,
    Repo,
    RuntimeName,
    Trusted,
    chosen_engine,
    image_finder,
    open_engine,
    open_recorded,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from arsandbox.sandbox.errors import MachineError
    from arsandbox.sandbox.experiment import Plan
    from arsandbox.sandbox.models import ImageRef


_COMMAND_WIDTH = 60


def run(
    command: Annotated[
        list[str] | None, typer.Argument(metavar="[-- COMMAND...]", help="Instead of the config's command.")
    ] = None,
    repo: Repo = Path(),
    image: Annotated[str | None, typer.Option(help="Image name (see: arsandbox image list).")] = None,
    budget: Annotated[str | None, typer.Option(help="Wall-clock time for training: 20s, 5m, 1h30m.")] = None,
    grace: Annotated[str | None, typer.Option(help="Time on top for start-up and closing work.")] = None,
    patch: Annotated[Path | None, typer.Option(help="The candidate is this git diff, not the working tree.")] = None,
    commit: Annotated[str | None, typer.Option(help="The candidate is this commit.")] = None,
    propose: Annotated[
        str | None, typer.Option(help="The candidate is what this proposes: sweep, aider, patches:DIR, or a command.")
    ] = None,
    trusted_proposer: Trusted = False,
    credential: Credentials = None,
    propose_timeout: ProposeTimeout = None,
    base: Annotated[str, typer.Option(help="The commit that the candidate is compared with.")] = "HEAD",
    editable: Annotated[list[str] | None, typer.Option(help="A path the candidate may change.")] = None,
    cpus: Annotated[float | None, typer.Option(help="Cores, like 0.5 or 4.")] = None,
    memory: Annotated[str | None, typer.Option(help="Memory, no swap: 512m, 16g.")] = None,
    pids: Annotated[int | None, typer.Option(help="Processes and threads, like 512.")] = None,
    disk: Annotated[str | None, typer.Option(help="What the run may write: 2g.")] = None,
    gpus: Annotated[
        str | None, typer.Option(help="none, how many, or UUIDs; without it what the config or the image says.")
    ] = None,
    network: Network = None,
    policy: PolicyName = None,
    metric: Annotated[str | None, typer.Option(help="The metric's name.")] = None,
    goal: Annotated[str | None, typer.Option(help="min or max.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=2**32 - 1, help="Instead of a fresh one, like 42.")] = None,
    tag: Annotated[str | None, typer.Option(help="The promotion branch's tag (default: month and day).")] = None,
    description: Annotated[str, typer.Option(help="One line for the history.")] = "",
    confirm: Annotated[bool, typer.Option("--confirm", help="Confirm a promising result at once.")] = False,
    no_promote: Annotated[bool, typer.Option("--no-promote", help="Measure and decide only.")] = False,
    accept_self_reported: Annotated[
        bool, typer.Option("--accept-self-reported", help="Promote on a number that the run itself printed.")
    ] = False,
    audit: Annotated[
        bool, typer.Option("--audit", help="Ask the model again in a second, fresh sandbox (L4).")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run, and stop.")] = False,
    engine: EngineName = None,
    runtime: RuntimeName = None,
    json: Json = False,
) -> int:
    """Run one candidate in fresh containers, judge it, and promote it if it wins.

    The candidate is the working tree's change against the base commit; no change at all measures the
    baseline.
    """
    from arsandbox.cli.render import ProgressListener
    from arsandbox.sandbox import confirmation, experiment
    from arsandbox.sandbox.errors import RefusedError, UsageError
    from arsandbox.sandbox.loop import once
    from arsandbox.sandbox.models import Verdict
    from arsandbox.sandbox.settings import Options, duration_option, network_option
    from arsandbox.sandbox.state import printable

    sources = {"--patch": patch, "--commit": commit, "--propose": propose}
    if len(given := [name for name, value in sources.items() if value is not None]) > 1:
        raise UsageError(f"{' and '.join(given)} exclude each other", hint="give one of them")
    if propose is not None and description:
        raise UsageError("--description and --propose exclude each other", hint="the proposer describes its edit")
    if propose is None and (trusted_proposer or credential or propose_timeout):
        raise UsageError(
            "--trusted-proposer, --credential and --propose-timeout are for a proposer", hint="--propose NAME"
        )
    if goal not in (None, "min", "max"):
        raise UsageError(f"--goal {goal!r}: must be min or max", hint="--goal min")
    options = Options(
        image=image,
        budget_s=duration_option(budget, "--budget"),
        grace_s=duration_option(grace, "--grace"),
        command=tuple(command or ()),
        editable=tuple(editable or ()),
        metric=metric,
        goal=goal,
        limits=_limits(cpus, memory, pids, disk),
        seed=seed,
        tag=tag,
        description=printable(" ".join(description.split())),
        promote=not no_promote,
        accept_self_reported=accept_self_reported,
        audit=audit,
        policy=policy,
        gpus=gpus,
        network=network_option(network),
    )
    listener = ProgressListener(quiet=json)
    request = experiment.Request(repo, options, base=base, patch=patch, commit=commit)
    errand = None if propose is None else once.Errand(
        request, propose, trusted=trusted_proposer, credentials=tuple(credential or ()),
        propose_limit_s=duration_option(propose_timeout, "--propose-timeout"),
    )  # fmt: skip
    name = chosen_engine(engine, repo, base)
    if dry_run:
        dry = request if errand is None else once.unchanged(request)
        plan = experiment.plan(dry, find_image=_image_or_warning(name))
        _warn_of_gpus(plan)
        with last_words():
            _say_plan(plan, propose, as_json=json)
        if plan.refusals:
            # Not raised: with --json the plan, which holds the refusals, is the one document.
            sys.stderr.write(f"arsandbox: the patch would be refused: {printable(plan.refusals[0])}\n")
            return RefusedError.exit_code
        return 0
    find_image = image_finder(name)
    if errand is not None:
        runner = open_engine(name, runtime)
        plan, record = once.propose_and_run(errand, runner, find_image, listener)
    else:
        plan = experiment.plan(request, find_image=find_image)
        runner = open_engine(name, runtime)
        record = experiment.run(plan, runner, listener)
    if confirmation.was_overtaken(record) or (confirm and record.verdict is Verdict.PENDING):
        record = confirmation.confirmed_or_conflicting(plan, record, runner, listener)
    elif record.verdict is Verdict.PENDING:
        listener.note(f"  to confirm it: arsandbox confirm {record.id}")
    if json:
        with last_words():
            sys.stdout.write(record.model_dump_json() + "\n")
    return record.verdict.exit_code


def confirm(
    experiment: Experiment,
    repo: Repo = Path(),
    no_promote: Annotated[bool, typer.Option("--no-promote", help="Decide only.")] = False,
    accept_self_reported: Annotated[
        bool, typer.Option("--accept-self-reported", help="Promote on a number that the run itself printed.")
    ] = False,
    engine: RecordedEngine = None,
    runtime: RuntimeName = None,
    json: Json = False,
) -> int:
    """Complete a pending experiment: fresh-seed pairs with the champion until the test decides."""
    from arsandbox.cli.render import ProgressListener
    from arsandbox.sandbox import confirmation
    from arsandbox.sandbox.ledger import Ledger
    from arsandbox.sandbox.planning import plan_of
    from arsandbox.sandbox.repository import Repository
    from arsandbox.sandbox.settings import Options

    repository = Repository.open(repo)
    with Ledger.open(repository.state) as ledger:
        pending = ledger.get(experiment)
    options = Options(promote=not no_promote, accept_self_reported=accept_self_reported)
    plan = plan_of(repository, pending, options)
    record = confirmation.confirm(plan, pending, open_recorded(pending, engine, runtime), ProgressListener(quiet=json))
    if json:
        with last_words():
            sys.stdout.write(record.model_dump_json() + "\n")
    return record.verdict.exit_code


def promote(
    experiment: Experiment,
    repo: Repo = Path(),
    accept_self_reported: Annotated[
        bool, typer.Option("--accept-self-reported", help="Promote on a number that the run itself printed.")
    ] = False,
    json: Json = False,
) -> None:
    """Promote a recorded winner by hand, through the same gates."""
    from rich.console import Console

    from arsandbox.cli.render import say_record
    from arsandbox.sandbox import hand_promotion
    from arsandbox.sandbox.ledger import Ledger
    from arsandbox.sandbox.repository import Repository

    repository = Repository.open(repo)
    with Ledger.open(repository.state) as ledger:
        record = ledger.get(experiment)
    record = hand_promotion.promote(repository, record, accept_self_reported=accept_self_reported)
    if json:
        with last_words():
            sys.stdout.write(record.model_dump_json() + "\n")
    say_record(record, Console(stderr=True, highlight=False))


def _limits(cpus: float | None, memory: str | None, pids: int | None, disk: str | None) -> dict[str, Any]:
    from arsandbox.sandbox.quantities import parse_size

    return {
        "cpus": cpus,
        "memory_bytes": None if memory is None else parse_size(memory, what="--memory"),
        "pids": pids,
        "disk_bytes": None if disk is None else parse_size(disk, what="--disk"),
    }


def _image_or_warning(engine: str) -> Callable[[str], ImageRef]:
    """For a dry run an image that is not built is no obstacle, but it is said."""
    from arsandbox.sandbox.errors import MachineError
    from arsandbox.sandbox.models import ImageRef
    from arsandbox.sandbox.planning import NOT_BUILT

    def find(name: str) -> ImageRef:
        try:
            return image_finder(engine)(name)
        except MachineError as error:
            _would_stop(error)
            return ImageRef(name=name, digest=NOT_BUILT)

    return find


def _warn_of_gpus(plan: Plan) -> None:
    """For a dry run devices that are not there are no obstacle either."""
    from arsandbox.sandbox.errors import MachineError
    from arsandbox.sandbox.gpu.grant import require_devices

    if plan.settings.needed_gpus.number:
        try:
            require_devices(plan.settings.needed_gpus)
        except MachineError as error:
            _would_stop(error)


def _would_stop(error: MachineError) -> None:
    sys.stderr.write(f"arsandbox: a real run would stop here: {error.message}\n  fix: {error.hint}\n")


def _say_plan(plan: Plan, propose: str | None, *, as_json: bool) -> None:
    import json
    import shlex

    from arsandbox.sandbox.planning import NOT_BUILT
    from arsandbox.sandbox.rehearsal import rehearse
    from arsandbox.sandbox.state import printable

    settings = plan.settings
    facts: dict[str, Any] = {
        "base": plan.base,
        "candidate_tree": plan.candidate.tree,
        "propose": propose,
        "files": list(plan.candidate.patch.files),
        "refusals": list(plan.refusals),
        "branch": plan.branch,
        "champion": plan.champion.commit,
        "image": {"name": plan.image.name, "digest": None if plan.image.digest == NOT_BUILT else plan.image.digest},
        "command": list(settings.project.command),
        "budget_s": settings.budget_s,
        "grace_s": settings.grace_s,
        "gpus": str(settings.gpus),
        "evaluation_gpus": str(settings.evaluation_gpus),
        "policy": settings.policy.model_dump(mode="json"),
        "stages": [] if plan.refusals else rehearse(plan),
    }
    if as_json:
        sys.stdout.write(json.dumps(facts) + "\n")
        return
    stages = facts.pop("stages")
    for name, value in facts.items():
        sys.stdout.write(f"{name:15} {value if isinstance(value, str | float) else json.dumps(value)}\n")
    for stage in stages:
        network = ", ".join(stage["network"]) or "no network"
        command = printable(shlex.join(stage["command"]))
        shown = command if len(command) <= _COMMAND_WIDTH else command[: _COMMAND_WIDTH - 1] + "…"
        sys.stdout.write(f"{'stage':15} {stage['stage']:9} {shown} (at most {stage['deadline_s']:g}s, {network})\n")

"""`arsandbox loop`: many experiments, unattended."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from arsandbox.cli.options import (
    Credentials,
    EngineName,
    Json,
    Network,
    ProposeTimeout,
    Repo,
    RuntimeName,
    Trusted,
    chosen_engine,
    image_finder,
    open_engine,
)


def loop(
    propose: Annotated[str, typer.Option(help="Who proposes: sweep, aider, patches:DIR, or a command.")],
    repo: Repo = Path(),
    count: Annotated[int | None, typer.Option("-n", min=1, help="Rounds in all.")] = None,
    duration: Annotated[str | None, typer.Option("--for", help="Begin no round after this time: 8h, 30m.")] = None,
    parallel: Annotated[int, typer.Option(min=1, max=64, help="How many may train at a time.")] = 1,
    ahead: Annotated[
        int | None,
        typer.Option(min=0, max=16, help="Proposals made before their turn (default: 1; 0 if a model proposes)."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the last loop.")] = False,
    trusted_proposer: Trusted = False,
    credential: Credentials = None,
    propose_timeout: ProposeTimeout = None,
    failures: Annotated[int | None, typer.Option(min=1, help="Stop after so many failed rounds in a row.")] = 10,
    plateau: Annotated[int | None, typer.Option(min=1, help="Stop after so many rounds without a promotion.")] = None,
    gpu_time: Annotated[str | None, typer.Option(help="Stop when stages have used this much GPU time.")] = None,
    image: Annotated[str | None, typer.Option(help="Image name (see: arsandbox image list).")] = None,
    budget: Annotated[str | None, typer.Option(help="Wall-clock time for training: 20s, 5m, 1h30m.")] = None,
    grace: Annotated[str | None, typer.Option(help="Time on top for start-up and closing work.")] = None,
    tag: Annotated[str | None, typer.Option(help="The promotion branch's tag (default: month and day).")] = None,
    metric: Annotated[str | None, typer.Option(help="unit_pass_rate, coverage or any name that a run reports.")] = None,
    target: Annotated[Path | None, typer.Option(help="Instead of --repo; needs no arsandbox.toml.")] = None,
    gpus: Annotated[
        str | None, typer.Option(help="Of each run: none, how many, or UUIDs; else what config or image says.")
    ] = None,
    network: Network = None,
    policy: Annotated[str | None, typer.Option(help="A preset's name or a policy file.")] = None,
    no_promote: Annotated[bool, typer.Option("--no-promote", help="Measure and decide only.")] = False,
    accept_self_reported: Annotated[
        bool, typer.Option("--accept-self-reported", help="Promote on a number that the run itself printed.")
    ] = False,
    engine: EngineName = None,
    runtime: RuntimeName = None,
    json: Json = False,
) -> None:
    """Propose, run, decide and promote, round after round, until a bound is reached.

    A file named STOP in the repository ends it after the rounds under way, and so does Ctrl-C; Ctrl-C twice
    ends it now.
    """
    from arsandbox.cli.render import ProgressListener
    from arsandbox.sandbox.api.targets import fallback
    from arsandbox.sandbox.loop.bounds import Bounds
    from arsandbox.sandbox.loop.running import Order, base_of
    from arsandbox.sandbox.loop.running import loop as rounds
    from arsandbox.sandbox.settings import Options, duration_option, network_option

    options = Options(
        image=image,
        budget_s=duration_option(budget, "--budget"),
        grace_s=duration_option(grace, "--grace"),
        tag=tag,
        promote=not no_promote,
        accept_self_reported=accept_self_reported,
        policy=policy,
        gpus=gpus,
        network=network_option(network),
        metric=metric,
        fallback=fallback(metric, None, duration_option(budget, "--budget") or 300.0) if metric else None,
    )
    bounds = Bounds(
        count=count,
        seconds=duration_option(duration, "--for"),
        failures=failures,
        plateau=plateau,
        gpu_seconds=duration_option(gpu_time, "--gpu-time"),
    )
    order = Order(
        target or repo, propose, options, bounds, parallel=parallel, resume=resume, trusted=trusted_proposer,
        credentials=tuple(credential or ()), propose_limit_s=duration_option(propose_timeout, "--propose-timeout"),
        ahead=ahead,
    )  # fmt: skip
    name = chosen_engine(engine, order.path, base_of(order))
    # Several rounds at a time share the terminal: lines, no bars.
    for record in rounds(order, open_engine(name, runtime), image_finder(name), ProgressListener(quiet=True)):
        if json:
            sys.stdout.write(record.model_dump_json() + "\n")
            sys.stdout.flush()

"""`arsandbox rerun`: reproduce recorded experiments and say how far they agree."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from arsandbox.cli.boundary import last_words
from arsandbox.cli.options import Experiment, Json, RecordedEngine, Repo, RuntimeName, open_recorded

if TYPE_CHECKING:
    from arsandbox.sandbox.ledger import Ledger
    from arsandbox.sandbox.record import Record
    from arsandbox.sandbox.rerun import Mode


def rerun(
    experiment: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="An experiment's id, its beginning or its end.")
    ] = None,
    repo: Repo = Path(),
    times: Annotated[int, typer.Option(min=1, help="Fresh-seed runs for a statistical comparison.")] = 5,
    exact: Annotated[bool, typer.Option("--exact", help="The recorded seed must give the recorded artifacts.")] = False,
    statistical: Annotated[bool, typer.Option("--statistical", help="Fresh seeds and an interval.")] = False,
    all_promoted: Annotated[bool, typer.Option("--all-promoted", help="Every promotion of --branch.")] = False,
    branch: Annotated[str | None, typer.Option(help="With --all-promoted: the promotion branch.")] = None,
    engine: RecordedEngine = None,
    runtime: RuntimeName = None,
    json: Json = False,
) -> int:
    """Rebuild an experiment from its record alone, run it again and compare.

    Exit 0: it agrees; 1: it does not; 3: something recorded was changed; 4: it cannot be compared here.
    """
    from arsandbox.cli.render import ProgressListener
    from arsandbox.sandbox.errors import UsageError
    from arsandbox.sandbox.ledger import Ledger as Opened
    from arsandbox.sandbox.recovery import recover
    from arsandbox.sandbox.repository import Repository
    from arsandbox.sandbox.rerun import rerun as reproduce

    if exact and statistical:
        raise UsageError("--exact and --statistical exclude each other", hint="give one of them")
    if (experiment is None) != all_promoted:
        raise UsageError("give an experiment's ID, or --all-promoted", hint="arsandbox history")
    mode: Mode = "exact" if exact else "statistical" if statistical else "auto"
    repository = Repository.open(repo)
    with Opened.open(repository.state) as ledger:
        records = _promoted(ledger, branch) if experiment is None else [ledger.get(experiment)]
    listener = ProgressListener(quiet=json)
    agreed = True
    for record in records:
        opened = open_recorded(record, engine, runtime)
        recover(repository.state, opened)
        result = reproduce(repository, record, opened, listener, mode=mode, times=times)
        agreed &= result.verdict.exit_code == 0
        if json:
            with last_words():
                sys.stdout.write(result.model_dump_json() + "\n")
        else:
            _say(result)
    return 0 if agreed else 1


def audit(
    experiment: Experiment,
    repo: Repo = Path(),
    engine: RecordedEngine = None,
    runtime: RuntimeName = None,
    json: Json = False,
) -> int:
    """Evaluate a recorded baseline or winner again, blind, from its stored artifact (trust L4).

    The model answers in fresh model boxes; what follows a position is replaced where requests show it, the
    order is another one, and the sealed text, where the project has one, is scored once for a candidate.
    """
    from arsandbox.cli.render import ProgressListener
    from arsandbox.sandbox.ledger import Ledger as Opened
    from arsandbox.sandbox.recovery import recover
    from arsandbox.sandbox.repository import Repository
    from arsandbox.sandbox.rerun import rerun as reproduce

    repository = Repository.open(repo)
    with Opened.open(repository.state) as ledger:
        record = ledger.get(experiment)
    opened = open_recorded(record, engine, runtime)
    recover(repository.state, opened)
    result = reproduce(repository, record, opened, ProgressListener(quiet=json), mode="audit")
    if json:
        with last_words():
            sys.stdout.write(result.model_dump_json() + "\n")
    return result.verdict.exit_code


def _promoted(ledger: Ledger, branch: str | None) -> list[Record]:
    from arsandbox.sandbox.errors import UsageError

    branches = {record.branch for record in ledger.latest() if record.promotion is not None}
    if branch is None and len(branches) == 1:
        branch = branches.pop()
    if branch is None:
        known = ", ".join(sorted(branches)) or "none"
        raise UsageError("--all-promoted needs --branch", hint=f"branches with promotions: {known}")
    records = ledger.promoted(branch)
    if not records:
        raise UsageError(f"--branch {branch}: nothing was promoted to it", hint="arsandbox history")
    return records


def _say(result: Record) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from arsandbox.sandbox.record import Grade

    again = result.rerun
    assert again is not None  # noqa: S101 - it is a rerun's record
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for grade in Grade:
        table.add_row(grade.value, "reached" if grade in again.reached else "-")
    table.add_row("recorded", f"{again.quantity} {again.recorded:.6g}")
    if again.interval is not None:
        table.add_row("interval", f"{again.interval[0]:.6g} to {again.interval[1]:.6g} (99%)")
    if again.values:
        table.add_row("values", ", ".join(f"{value:.6g}" for value in again.values))
    if again.baseline_values:
        table.add_row("baseline", ", ".join(f"{value:.6g}" for value in again.baseline_values))
    for difference in again.differences:
        table.add_row("changed", escape(f"{difference.fact}: {difference.then or '-'} -> {difference.now or '-'}"))
    Console(highlight=False).print(table)

"""`arsandbox history`, `show`, `diff`, `logs`: read the ledger."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from arsandbox.cli.options import Experiment, Json, Repo

if TYPE_CHECKING:
    from arsandbox.sandbox.ledger import Ledger


def history(
    repo: Repo = Path(),
    count: Annotated[int | None, typer.Option("-n", min=1, help="The last N only.")] = None,
    tsv: Annotated[bool, typer.Option("--tsv", help="autoresearch's results.tsv.")] = False,
    jsonl: Annotated[bool, typer.Option("--jsonl", help="One record a line.")] = False,
    json: Json = False,
) -> None:
    """List the experiments, most recent first."""
    if not (json or jsonl or tsv):
        _say_table(repo, count)
        return
    with _ledger(repo) as (ledger, _):
        records = ledger.latest(count)
    if json or jsonl:
        for record in records:
            sys.stdout.write(record.model_dump_json() + "\n")
    else:
        from arsandbox.sandbox.results_table import results_tsv

        sys.stdout.write(results_tsv(records))


def _say_table(repo: Path, count: int | None) -> None:
    from arsandbox.cli.listing import history_table, history_text

    with _ledger(repo) as (ledger, _):
        rows = ledger.summaries(count)
    if not rows:
        sys.stderr.write("no experiments yet: arsandbox run\n")
    elif sys.stdout.isatty():
        from rich.console import Console

        Console(highlight=False).print(history_table(rows))
    else:
        sys.stdout.write(history_text(rows))


def show(experiment: Experiment, repo: Repo = Path(), json: Json = False) -> None:
    """Show one experiment's record."""
    with _ledger(repo) as (ledger, _):
        record = ledger.get(experiment)
    if json:
        sys.stdout.write(record.model_dump_json() + "\n")
        return
    from rich.console import Console

    from arsandbox.cli.render import record_table

    Console(highlight=False).print(record_table(record))


def diff(experiment: Experiment, repo: Repo = Path()) -> None:
    """Print the candidate's patch."""
    with _ledger(repo) as (ledger, state):
        record = ledger.get(experiment)
    _print_file(state / "experiments" / record.id / "patch.diff", raw=not sys.stdout.isatty())


def logs(
    experiment: Experiment,
    repo: Repo = Path(),
    stage: Annotated[str, typer.Option(help="train, evaluate or propose.")] = "train",
    raw: Annotated[bool, typer.Option("--raw", help="Bytes as they were written, control sequences too.")] = False,
) -> None:
    """Print what a stage wrote to its output, control sequences stripped."""
    from arsandbox.sandbox.errors import UsageError
    from arsandbox.sandbox.run_directory import measured_in

    if stage not in ("train", "evaluate", "propose"):
        raise UsageError(f"--stage {stage!r}: must be train, evaluate or propose")
    with _ledger(repo) as (ledger, state):
        record = ledger.get(experiment)
    _print_file(measured_in(state, record) / f"{stage}.log", raw=raw)


@contextmanager
def _ledger(repo: Path) -> Iterator[tuple[Ledger, Path]]:
    from arsandbox.sandbox.ledger import Ledger
    from arsandbox.sandbox.location import find_state

    state = find_state(repo)
    with Ledger.open(state) as ledger:
        yield ledger, state


def _print_file(path: Path, *, raw: bool) -> None:
    from arsandbox.sandbox.errors import UsageError

    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                if raw:
                    sys.stdout.buffer.write(block)
                else:
                    text = block.decode("utf-8", "replace")
                    sys.stdout.write("".join(c for c in text if c.isprintable() or c in "\n\t"))
    except FileNotFoundError as error:
        raise UsageError(f"this experiment has no {path.name}", hint="it ended before that stage") from error

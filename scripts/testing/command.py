"""The main function of scripts/test, after the set-up."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from . import listing, summary
from .groups import DEFAULT
from .options import Options, parse
from .processes import Processes, StoppedError
from .runner import Runner, say

ROOT = Path(__file__).resolve().parents[2]


def main(arguments: Sequence[str]) -> int:
    """The exit status. With --check first it only looks at the arguments, and prints whether an engine is needed."""
    os.chdir(ROOT)
    if arguments[:1] == ["--check"]:
        print("" if parse(arguments[1:]).list else "engine")
        return 0
    options = parse(arguments)
    processes = Processes()
    try:
        with processes.watching():
            return _list(processes) if options.list else _run(options, processes)
    except StoppedError as error:
        return 128 + error.number


def _list(processes: Processes) -> int:
    print("\n".join(listing.described(ROOT, listing.collect(ROOT, processes))))
    return 0


def _run(options: Options, processes: Processes) -> int:
    runner = Runner(ROOT, options, processes)
    if options.whole and DEFAULT in options.sections and (status := runner.lint()):
        print(summary.verdict((), status))
        return status
    status = 1
    try:
        status = runner.run_all()
    except StoppedError as error:
        say(str(error))
        status = 128 + error.number
        raise
    finally:
        _report(runner, options, status)
    return status


def _report(runner: Runner, options: Options, status: int) -> None:
    """Everything that is said at the end, and the log."""
    results = [result for run in runner.runs for result in run.results]
    if results:
        print("", "seconds of test time by folder:", *summary.by_folder(results), sep="\n")
        print("the slowest tests:", *summary.slowest(results), sep="\n")
    for run in runner.runs:
        for test in run.named("failed"):
            print(f"failed (seed {run.seed}): {test}")
    if options.log is not None:
        with options.log.open("a") as file:
            for run in runner.runs:
                file.write(summary.log_line(run, selection=options.described, busy=options.busy) + "\n")
    for run in runner.runs:
        print(f"tests: {summary.counts(run)}")
    print(summary.verdict(runner.runs, status), flush=True)

"""Earlier experiments, most recent first: from the ledger, from files of one JSON document a line, from results.tsv."""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from arsandbox.sandbox.errors import ArsandboxError
from arsandbox.sandbox.ledger import Ledger
from arsandbox.sandbox.location import find_state
from arsandbox.sandbox.models import Model
from arsandbox.sandbox.record import Record
from arsandbox.sandbox.results_table import HEAD, results_tsv
from arsandbox.sandbox.state import printable

FILE_NAME = "results.jsonl"
TABLE_NAME = "results.tsv"
_MOST_BYTES = 256 * 1024**2
_TIMES = ("started_at", "timestamp", "time", "date")
_VALUES = ("value", "metric_value", "result", "val_bpb")
_VERDICTS = ("verdict", "status", "outcome")
_TEXTS = ("description", "hypothesis", "message", "reason")


class PastExperiment(Model):
    """One experiment of the past; `metric` and `value` are None where it has none."""

    id: str = ""
    started_at: str = ""
    verdict: str = ""
    metric: str | None = None
    value: float | None = None
    description: str = ""
    reason: str = ""
    commit: str | None = None
    source: Literal["ledger", "results.jsonl", "results.tsv"]


class History(Model):
    """Experiments, most recent first; `broken_lines` counts lines that cannot be read, `problem` says what failed."""

    experiments: tuple[PastExperiment, ...] = ()
    broken_lines: int = 0
    problem: str = ""


_Reader = Callable[[Path], tuple[list[PastExperiment], int]]


def get_experiment_history(path: str | os.PathLike[str] = ".", limit: int | None = None) -> History:
    """The experiments of the repository at `path`, of its results.jsonl and of its results.tsv, at most `limit`.

    An experiment that is in several is there once. Never raises for what is missing or damaged.
    """
    place, problems = Path(path), list[str]()
    found: list[PastExperiment] = []
    table: set[str] = set()
    try:
        with Ledger.open(find_state(place)) as ledger:
            records = ledger.latest()
        found, table = [_of_record(record) for record in records], set(results_tsv(records).splitlines())
    except (ArsandboxError, OSError) as error:
        problems.append(str(error))
    known, broken = {one.id for one in found}, 0
    readers: dict[str, _Reader] = {FILE_NAME: _read, TABLE_NAME: functools.partial(_read_table, known=table)}
    for name, read in readers.items():
        try:
            lines, unreadable = read(place / name)
        except OSError as error:
            problems.append(f"{name}: {error.strerror}")
            continue
        found += [one for one in reversed(lines) if not one.id or one.id not in known]
        broken += unreadable
        problems = problems if not lines else []  # a folder of results alone is a history too
    # Stable: what has no time keeps its place after what has one.
    found.sort(key=lambda one: one.started_at, reverse=True)
    return History(experiments=tuple(found[:limit]), broken_lines=broken, problem="; ".join(problems))


def _read(file: Path) -> tuple[list[PastExperiment], int]:
    """The file's experiments, oldest first, and how many lines are broken."""
    if not file.exists():
        return [], 0
    found, broken = [], 0
    with file.open("rb") as stream:
        for line in stream.read(_MOST_BYTES).split(b"\n"):
            if not line.strip():
                continue
            try:
                document = json.loads(line)
            except (ValueError, RecursionError):
                document = None
            if isinstance(document, dict):
                found.append(_of_document(document))
            else:
                broken += 1
    return found, broken


def _read_table(file: Path, known: set[str]) -> tuple[list[PastExperiment], int]:
    """The rows of an autoresearch results.tsv but `known` ones, oldest first, and how many lines are broken.

    A crash is written as 0.000000 there: it has no value, and is never the best.
    """
    if not file.exists():
        return [], 0
    with file.open("rb") as stream:
        head, *lines = stream.read(_MOST_BYTES).decode("utf-8", "replace").splitlines() or [""]
    names = head.split("\t")
    if names[:1] != ["commit"] or names[2:] != HEAD.split("\t")[2:]:
        return [], 1 + len(lines)
    found, broken = [], 0
    for line in lines:
        cells = line.split("\t", len(names) - 1)
        if not line.strip() or line in known:
            continue
        try:
            commit, value, _, status, description = cells[0], float(cells[1]), float(cells[2]), cells[3], cells[4]
        except (ValueError, IndexError):
            broken += 1
            continue
        measured = status != "crash" and math.isfinite(value)
        found.append(
            PastExperiment(
                verdict=printable(status)[:100],
                metric=printable(names[1])[:100],
                value=value if measured else None,
                description=printable(description)[:1000],
                commit=printable(commit)[:64],
                source="results.tsv",
            )
        )
    return found, broken


def _of_record(record: Record) -> PastExperiment:
    return PastExperiment(
        id=record.id,
        started_at=record.started_at,
        verdict=record.verdict.value,
        metric=record.metric.name,
        value=record.metric.value,
        description=record.description,
        reason=record.reason,
        commit=record.promotion.commit if record.promotion else None,
        source="ledger",
    )


def _of_document(document: dict[str, Any]) -> PastExperiment:
    metric = document.get("metric")
    inner = metric if isinstance(metric, dict) else {}
    value = inner.get("value", next((document[key] for key in _VALUES if key in document), None))
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    commit = document.get("commit")
    name = inner.get("name") if inner else metric
    return PastExperiment(
        id=_text(document, ("id", "experiment")),
        started_at=_text(document, _TIMES),
        verdict=_text(document, _VERDICTS),
        metric=printable(name) if isinstance(name, str) else None,
        value=float(value) if number and value is not None else None,
        description=_text(document, _TEXTS),
        reason=_text(document, ("reason",)),
        commit=printable(commit) if isinstance(commit, str) else None,
        source="results.jsonl",
    )


def _text(document: dict[str, Any], keys: tuple[str, ...]) -> str:
    return next((printable(document[key])[:1000] for key in keys if isinstance(document.get(key), str)), "")

"""Earlier experiments, most recent first: from the ledger, and from files of one JSON document a line."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, Literal

from arsandbox.sandbox.errors import ArsandboxError
from arsandbox.sandbox.ledger import Ledger
from arsandbox.sandbox.location import find_state
from arsandbox.sandbox.models import Model, Record
from arsandbox.sandbox.state import printable

FILE_NAME = "results.jsonl"
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
    source: Literal["ledger", "results.jsonl"]


class History(Model):
    """Experiments, most recent first; `broken_lines` counts lines that are no JSON object, `problem` what failed."""

    experiments: tuple[PastExperiment, ...] = ()
    broken_lines: int = 0
    problem: str = ""


def get_experiment_history(path: str | os.PathLike[str] = ".", limit: int | None = None) -> History:
    """The experiments of the repository at `path` and of its results.jsonl, at most `limit`.

    An experiment that is in both is there once. Never raises for what is missing or damaged.
    """
    place, problems = Path(path), list[str]()
    found: list[PastExperiment] = []
    try:
        with Ledger.open(find_state(place)) as ledger:
            found = [_of_record(record) for record in ledger.latest()]
    except (ArsandboxError, OSError) as error:
        problems.append(str(error))
    known = {one.id for one in found}
    try:
        lines, broken = _read(place / FILE_NAME)
        found += [one for one in reversed(lines) if not one.id or one.id not in known]
        problems = problems if not lines else []  # a folder of results alone is a history too
    except OSError as error:
        broken = 0
        problems.append(f"{FILE_NAME}: {error.strerror}")
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

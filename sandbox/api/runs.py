"""Prepare a repository, and run what is in its working tree once."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from arsandbox.sandbox import experiment
from arsandbox.sandbox.api.opening import seconds, target
from arsandbox.sandbox.errors import ArsandboxError
from arsandbox.sandbox.events import Listener
from arsandbox.sandbox.models import Goal, Model
from arsandbox.sandbox.planning import Plan
from arsandbox.sandbox.proposers.brief import tail
from arsandbox.sandbox.record import Record
from arsandbox.sandbox.repository import clone_repository

AUTORESEARCH = "https://github.com/karpathy/autoresearch.git"
PrepareStatus = Literal["ready", "nothing to prepare", "failed"]


class PreparedExperiment(Model):
    """`status` is `ready` (data frozen), `nothing to prepare`, or `failed` with the reason in `message`."""

    status: PrepareStatus
    path: Path
    cloned: bool = False
    data_sha256: str | None = None
    duration_s: float = 0.0
    message: str = ""


class RanExperiment(Model):
    """One run: its metric and value (None where there is none), the end of its log, seconds, success, the error."""

    success: bool
    metric: str = ""
    value: float | None = None
    verdict: str = ""
    log_tail: str = ""
    duration_s: float = 0.0
    error: str = ""
    experiment: str = ""


def prepare_experiment(
    path: str | os.PathLike[str] = "autoresearch", *, url: str = AUTORESEARCH, timeout: str | float = 600.0,
    image: str | None = None, engine: str | None = None, listener: Listener | None = None,
) -> PreparedExperiment:  # fmt: skip
    """Clone `url` at depth 1 into `path`, or use what is there, and run its prepare stage in a sandbox.

    `timeout` bounds the prepare stage, in seconds or like `10m`. Every failure is a status.
    """
    place, began, cloned = Path(path), time.monotonic(), False

    def ended(status: PrepareStatus, message: str, data: str | None = None) -> PreparedExperiment:
        spent = round(time.monotonic() - began, 3)
        return PreparedExperiment(
            status=status, path=place, cloned=cloned, data_sha256=data, duration_s=spent, message=message
        )

    try:
        limit = seconds(timeout)
        if not place.exists() or (place.is_dir() and not any(place.iterdir())):
            place = clone_repository(url, place, depth=1)
            cloned = True
        asked = target(place, metric=None, goal=None, budget=None, image=image, engine=engine, listener=listener)
        plan = _within(asked.plan(commit="HEAD"), limit)
        if plan.settings.project.prepare is None:
            return ended("nothing to prepare", "the config has no [prepare] section")
        data = experiment.prepare(plan, asked.engine(), asked.listener)
        return ended("ready", f"prepared data sha256:{data}", data)
    except (ArsandboxError, OSError) as error:
        return ended("failed", explained(error))


def run_experiment(
    path: str | os.PathLike[str] = ".", *, metric: str | None = None, goal: Goal | None = None,
    budget: str | float | None = None, command: Sequence[str] = (), image: str | None = None, engine: str | None = None,
    listener: Listener | None = None,
) -> RanExperiment:  # fmt: skip
    """Run the working tree of `path` once in a sandbox, under a wall-clock limit of `budget`; promotes nothing."""
    began = time.monotonic()
    try:
        asked = target(
            path, metric=metric, goal=goal, budget=budget, image=image, command=command, engine=engine,
            listener=listener,
        )  # fmt: skip
        plan = asked.plan()
        record = experiment.run(plan, asked.engine(), asked.listener)
    except (ArsandboxError, OSError) as error:
        return RanExperiment(
            success=False, metric=metric or "", error=explained(error), duration_s=round(time.monotonic() - began, 3)
        )
    return _ran(record, plan, time.monotonic() - began)


def explained(error: Exception) -> str:
    """The error in one line, with how to fix it."""
    hint = error.hint if isinstance(error, ArsandboxError) else ""
    return f"{error} (fix: {hint})" if hint else str(error)


def log_tail(plan: Plan, record: Record) -> str:
    """The end of the experiment's log, cleaned and bounded."""
    kept = plan.repository.state / "experiments" / record.id
    return tail(kept / "train.log")


def _ran(record: Record, plan: Plan, spent_s: float) -> RanExperiment:
    success = record.verdict.exit_code == 0
    return RanExperiment(
        success=success,
        metric=record.metric.name,
        value=record.metric.value,
        verdict=record.verdict.value,
        log_tail=log_tail(plan, record),
        duration_s=round(spent_s, 3),
        error="" if success else record.reason,
        experiment=record.id,
    )


def _within(plan: Plan, limit_s: float) -> Plan:
    """The plan with at most `limit_s` seconds for its prepare stage."""
    prepare = plan.settings.project.prepare
    if prepare is None or prepare.timeout <= limit_s:
        return plan
    project = plan.settings.project.model_copy(update={"prepare": prepare.model_copy(update={"timeout": limit_s})})
    return replace(plan, settings=replace(plan.settings, project=project))

"""What one experiment runs with: the base commit's config, with the command line's options over it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from arsandbox.policies.edits import EditRules
from arsandbox.policies.model import Limits, Policy
from arsandbox.sandbox import config
from arsandbox.sandbox.canonical import digest
from arsandbox.sandbox.config import ProjectConfig
from arsandbox.sandbox.errors import MachineError, UsageError
from arsandbox.sandbox.objects import ObjectStore
from arsandbox.sandbox.quantities import parse_duration

_LEAST_GRACE_S = 10.0


@dataclass(frozen=True)
class Options:
    """The command line's word; None where nothing was said. Durations in seconds, sizes in bytes."""

    image: str | None = None
    budget_s: float | None = None
    grace_s: float | None = None
    command: tuple[str, ...] = ()
    editable: tuple[str, ...] = ()
    metric: str | None = None
    goal: str | None = None
    limits: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    tag: str | None = None
    description: str = ""
    promote: bool = True
    accept_self_reported: bool = False
    audit: bool = False


@dataclass(frozen=True)
class Settings:
    """Resolved and validated; everything that a run depends on but the candidate itself."""

    project: ProjectConfig
    policy: Policy
    budget_s: float
    grace_s: float

    @property
    def deadline_s(self) -> float:
        """Seconds after which the training stage is ended."""
        return self.budget_s + self.grace_s

    @property
    def rules(self) -> EditRules:
        """Which edits are allowed; the config itself and what evaluates are always protected."""
        return EditRules(
            editable=self.project.editable,
            protected=(*self.project.protected, *self.project.metric.evaluator, config.FILE_NAME),
        )

    @property
    def heldout(self) -> tuple[str, ...]:
        """Paths that only the evaluation may see."""
        return self.project.evaluate.data if self.project.evaluate else ()

    def effective(self) -> dict[str, Any]:
        """The policy as it is recorded, with the edit rules that the candidate passed."""
        edits = {"editable": list(self.rules.editable), "protected": list(self.rules.protected)}
        return {**self.policy.model_dump(mode="json"), "edits": edits}

    def digest(self, *, image: str, fixed_tree: str, data: str | None) -> str:
        """Names the measuring set-up: values are comparable where, and only where, this is equal."""
        project = self.project.model_dump(
            mode="json", exclude={"decision", "editable", "protected", "image", "measurement"}
        )
        limits = self.policy.limits.model_dump(mode="json")
        document = {
            "project": {**project, "budget": self.budget_s, "grace": self.grace_s},
            "limits": limits,
            "image": image,
            "fixed_tree": fixed_tree,
            "data": data,
        }
        return digest(document)


def load_project(objects: ObjectStore, base: str) -> ProjectConfig | None:
    """The config of the commit `base`, or None where it has none. Raises UsageError."""
    text = objects.read(f"{base}:{config.FILE_NAME}")
    if text is not None:
        return config.parse(_decoded(text, config.FILE_NAME), f"{config.FILE_NAME} at {base[:12]}")
    text = objects.read(f"{base}:pyproject.toml")
    if text is None:
        return None
    return config.parse_pyproject(_decoded(text, "pyproject.toml"), f"pyproject.toml at {base[:12]}")


def resolve(project: ProjectConfig | None, options: Options) -> Settings:
    """Combine config and options. Raises UsageError naming what is wrong or missing."""
    if project is None and not (options.metric and options.command):
        raise UsageError(
            "the base commit has no arsandbox.toml, so --metric NAME and a command after -- are needed",
            hint="arsandbox init && git add arsandbox.toml && git commit -m 'add arsandbox.toml'",
        )
    project = _with_options(project or ProjectConfig(), options)
    if options.audit and (project.evaluate is None or project.evaluate.interface != "lm"):
        raise UsageError(
            '--audit needs a model that can be asked: [evaluate] with interface = "lm"',
            hint="docs/integrity.md says how to move a project there",
        )
    budget = options.budget_s if options.budget_s is not None else project.budget
    if budget <= 0:
        raise UsageError("--budget must be longer than nothing", hint="write it like 90s, 5m or 1h30m")
    grace = options.grace_s if options.grace_s is not None else project.grace
    if grace is None:
        grace = max(_LEAST_GRACE_S, budget / 10)
    return Settings(project, _policy(project, options), budget, grace)


def _with_options(project: ProjectConfig, options: Options) -> ProjectConfig:
    metric = project.metric.model_dump()
    if options.metric:
        metric["name"] = options.metric
    if options.goal:
        metric["goal"] = options.goal
    changed: dict[str, Any] = {**project.model_dump(), "metric": metric}
    for name, value in (
        ("image", options.image),
        ("command", options.command),
        ("editable", options.editable),
    ):
        if value:
            changed[name] = value
    return config.from_table(changed, "command line")


def _policy(project: ProjectConfig, options: Options) -> Policy:
    cores = float(os.cpu_count() or 1)
    asked = {
        "cpus": project.limits.cpus,
        "memory_bytes": project.limits.memory,
        "pids": project.limits.pids,
        "disk_bytes": project.limits.disk,
        "disk_inodes": project.limits.inodes,
        "tmp_bytes": project.limits.tmp,
        "shm_bytes": project.limits.shm,
        "output_bytes": project.limits.output,
    }
    values = {
        name: value
        for source in (asked, options.limits)
        for name, value in source.items()
        if value is not None  # nothing was said: what the project said stays
    }
    values.setdefault("cpus", min(Limits().cpus, cores))
    try:
        if values["cpus"] > cores:
            raise MachineError(
                f"{values['cpus']:g} cpus are asked for but this machine has {cores:g}", hint=f"--cpus {cores:g}"
            )
        return Policy(limits=Limits(**values))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UsageError(f"limit {first['loc'][0]} = {config.shown(first['input'])}: {first['msg']}") from error
    except (ValueError, OverflowError) as error:
        raise UsageError("a limit is too large a number") from error


def _decoded(text: bytes, name: str) -> str:
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name}: is not UTF-8 text") from error


def duration_option(text: str | None, name: str) -> float | None:
    """Seconds in an option's value, or None where it was not given. Raises UsageError naming the option."""
    return None if text is None else parse_duration(text, what=name)

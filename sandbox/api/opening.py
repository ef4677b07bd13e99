"""Resolve a target for the API: repository, config, image, engine, champion."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from arsandbox.sandbox import planning
from arsandbox.sandbox.api import targets
from arsandbox.sandbox.engines.port import Engine
from arsandbox.sandbox.engines.registry import open_engine
from arsandbox.sandbox.events import Listener, Silent
from arsandbox.sandbox.imaging import catalogue
from arsandbox.sandbox.models import Goal, ImageRef
from arsandbox.sandbox.planning import Plan, Request
from arsandbox.sandbox.quantities import parse_duration
from arsandbox.sandbox.settings import Options

DEFAULT_METRIC = "val_bpb"
DEFAULT_BUDGET_S = 300.0


def seconds(value: str | float) -> float:
    """A duration given as seconds or like `5m`. Raises UsageError."""
    return parse_duration(value, what="budget") if isinstance(value, str) else float(value)


def find_image(name: str) -> ImageRef:
    """The pinned image of that name. Raises UsageError (unknown), MachineError (not built)."""
    pinned = catalogue().resolve(name)
    return ImageRef(name=pinned.name, digest=pinned.digest)


@dataclass(frozen=True)
class Target:
    """What to run, and how its plans are made: with the target's own config, else with one for its layout."""

    path: Path
    metric: str | None = None
    goal: Goal | None = None
    budget_s: float | None = None
    image: str | None = None
    command: tuple[str, ...] = ()
    tag: str | None = None
    engine_name: str | None = None
    listener: Listener = field(default_factory=Silent)

    def request(self, *, promote: bool, description: str = "") -> Request:
        """A request of this target for its working tree."""
        options = Options(
            image=self.image,
            budget_s=self.budget_s,
            command=self.command,
            metric=self.metric,
            goal=self.goal,
            tag=self.tag,
            description=description,
            promote=promote,
            # Who asks for a metric that the run itself reports has asked for it: it is L0 or L1 on the record.
            accept_self_reported=promote,
            fallback=targets.fallback(self.metric or DEFAULT_METRIC, self.goal, self.budget_s or DEFAULT_BUDGET_S),
        )
        return Request(self.path, options)

    def plan(
        self, *, promote: bool = False, base: str = "HEAD", commit: str | None = None, diff: bytes | None = None,
        description: str = "",
    ) -> Plan:  # fmt: skip
        """Resolve it for one candidate; runs nothing. Raises ArsandboxError."""
        request = self.request(promote=promote, description=description)
        return planning.plan(replace(request, base=base, commit=commit, diff=diff), find_image=self._find_image)

    def engine(self) -> Engine:
        """The engine that was named, else that of the target's config. Raises UsageError, MachineError."""
        return open_engine(self._engine_name())

    def _engine_name(self) -> str:
        return self.engine_name or planning.engine_name(self.path)

    def _find_image(self, name: str) -> ImageRef:
        """What the engine brings itself, else what is pinned."""
        own = self.engine().find_image(name) if self._engine_name() != "docker" else None
        return own or find_image(name)


def target(
    path: str | os.PathLike[str], *, metric: str | None, goal: Goal | None, budget: str | float | None,
    image: str | None, command: Sequence[str] = (), tag: str | None = None, engine: str | None = None,
    listener: Listener | None = None,
) -> Target:  # fmt: skip
    """A Target from what callers write. Raises UsageError."""
    limit = None if budget is None else seconds(budget)
    return Target(Path(path), metric, goal, limit, image, tuple(command), tag, engine, listener or Silent())

"""Engines by name, from the entry point group `arsandbox.engines`."""

from __future__ import annotations

from importlib.metadata import entry_points

from arsandbox.sandbox.engines.port import Engine
from arsandbox.sandbox.errors import UsageError

GROUP = "arsandbox.engines"


def names() -> list[str]:
    """The engines that are installed."""
    return sorted(point.name for point in entry_points(group=GROUP))


def open_engine(name: str) -> Engine:
    """Connect to the engine `name`. Raises UsageError for an unknown name, MachineError if it is not there."""
    for point in entry_points(group=GROUP):
        if point.name == name:
            engine: Engine = point.load()()
            return engine
    raise UsageError(f"--engine {name!r}: not installed", hint=f"one of: {', '.join(names())}")

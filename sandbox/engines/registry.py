"""Engines by name, from the entry point group `arsandbox.engines`."""

from __future__ import annotations

from importlib.metadata import entry_points

from arsandbox.sandbox.engines.port import Engine, RuntimeChooser
from arsandbox.sandbox.errors import MachineError, UsageError

GROUP = "arsandbox.engines"
AUTO = "auto"


def names() -> list[str]:
    """The engines that are installed."""
    return sorted(point.name for point in entry_points(group=GROUP))


def open_engine(name: str, *, runtime: str | None = None) -> Engine:
    """Connect to the engine `name`, or for `auto` to what open_any finds, with `runtime` where one is asked for.

    Raises UsageError for an unknown name, MachineError if it, or the runtime, is not there.
    """
    if name == AUTO:
        return open_any(runtime=runtime)
    for point in entry_points(group=GROUP):
        if point.name == name:
            engine: Engine = point.load()()
            return engine if runtime is None else _with_runtime(engine, runtime)
    raise UsageError(f"--engine {name!r}: not installed", hint=f"one of: {', '.join([*names(), AUTO])}")


def _with_runtime(engine: Engine, runtime: str) -> Engine:
    if not isinstance(engine, RuntimeChooser):
        raise MachineError(
            f"--runtime {runtime}: the {engine.info().name} engine has no runtimes to choose from",
            hint="--engine docker",
        )
    return engine.with_runtime(runtime)


def open_any(*, runtime: str | None = None) -> Engine:
    """Docker where it answers, else the embedded engine. Raises MachineError saying why neither can be had.

    For callers whom the user told to choose: an engine that isolates less is never chosen in silence.
    """
    try:
        return open_engine("docker", runtime=runtime)
    except MachineError as docker:
        try:
            return open_engine("embedded", runtime=runtime)
        except MachineError as embedded:
            message = f"no engine can be used: {docker.message}; {embedded.message}"
            raise MachineError(message, hint=f"{docker.hint}; or {embedded.hint}") from embedded

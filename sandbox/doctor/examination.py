"""Every check, in the order in which they matter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from arsandbox.sandbox.doctor import engines, gpu, machine
from arsandbox.sandbox.doctor.engines import Opened
from arsandbox.sandbox.doctor.rows import Row


def examine(engine: str, *, try_gpu: bool = False) -> list[Row]:
    """The rows for `engine`. Never raises for what it finds.

    `try_gpu`: a small container gets a GPU by the very request that a run would make.
    """
    opened = Opened.of(engine)
    checks: list[Callable[[], Row]] = [
        lambda: engines.engine(opened),
        lambda: engines.other_engine(opened),
        lambda: engines.promises(opened),
        engines.known_holes,
        lambda: engines.runtimes(opened),
        lambda: engines.seccomp(opened),
        lambda: engines.user_namespaces(opened),
        machine.git,
        lambda: machine.kernel(opened.name),
        lambda: machine.cgroups(opened.facts),
        lambda: machine.privilege(opened.name),
        machine.overlay,
        machine.quota,
        lambda: machine.disk(opened.facts),
        machine.clock,
        lambda: machine.image_tools(opened.name),
        lambda: engines.images(opened),
        lambda: engines.image_lock(Path()),
        lambda: gpu.driver(wanted=try_gpu),
        lambda: gpu.toolkit(opened.facts, wanted=try_gpu),
        lambda: gpu.cdi(opened.facts),
    ]
    if try_gpu:
        checks.append(lambda: gpu.grant(opened))
    return [check() for check in checks]

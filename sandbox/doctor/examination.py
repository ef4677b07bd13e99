"""Every check, in the order in which they matter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from arsandbox.sandbox.doctor import engines, gpu, machine
from arsandbox.sandbox.doctor.engines import Opened
from arsandbox.sandbox.doctor.rows import Row
from arsandbox.sandbox.errors import ArsandboxError


def examine(engine: str, *, try_gpu: bool = False) -> list[Row]:
    """The rows for `engine`. Never raises for what it finds.

    `try_gpu`: a small container gets a GPU by the very request that a run would make.
    """
    opened = Opened.of(engine)
    # The name is for a check that cannot be made: each row has its own else.
    checks: list[tuple[str, Callable[[], Row]]] = [
        ("engine", lambda: engines.engine(opened)),
        ("other engine", lambda: engines.other_engine(opened)),
        ("promises", lambda: engines.promises(opened)),
        ("versions", engines.known_holes),
        ("runtimes", lambda: engines.runtimes(opened)),
        ("seccomp", lambda: engines.seccomp(opened)),
        ("userns", lambda: engines.user_namespaces(opened)),
        ("git", machine.git),
        ("kernel", lambda: machine.kernel(opened.name)),
        ("cgroups", lambda: machine.cgroups(opened.facts)),
        ("privilege", lambda: machine.privilege(opened.name)),
        ("overlay", machine.overlay),
        ("quota", machine.quota),
        ("disk", lambda: machine.disk(opened.facts)),
        ("clock", machine.clock),
        ("images", lambda: machine.image_tools(opened.name)),
        ("pinned", lambda: engines.images(opened)),
        ("lock", lambda: engines.image_lock(Path())),
        ("gpu", lambda: gpu.driver(wanted=try_gpu)),
        ("toolkit", lambda: gpu.toolkit(opened.facts, wanted=try_gpu)),
        ("cdi", lambda: gpu.cdi(opened.facts)),
    ]
    if try_gpu:
        checks.append(("grant", lambda: gpu.grant(opened)))
    return [_row(name, check) for name, check in checks]


def _row(name: str, check: Callable[[], Row]) -> Row:
    """What `check` says, or why it cannot be made: a full disk, or a state directory that cannot be written."""
    try:
        return check()
    except ArsandboxError as error:
        return Row(name=name, status="missing", detail=error.message, fix=error.hint or "arsandbox doctor --probe")

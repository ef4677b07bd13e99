"""What an engine does not enforce on this machine, said before anything runs on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from arsandbox.sandbox.models import EngineInfo

_WORDS = {
    "memory": "memory",
    "pids": "processes",
    "cpus": "processor time",
    "disk": "disk space and files",
    "deadline_without_controller": "the end of a sandbox whose controller died",
    "own_uid": "a user id of its own",
    "egress": "a network allowlist",
    "image": "an image instead of this machine's programs",
}


def banner(info: EngineInfo, *, chosen: bool = False) -> Iterator[str]:
    """Lines for the user; none for an engine that keeps every promise, unless it was `chosen` for the user."""
    from arsandbox.sandbox.models import Guarantee

    if info.guarantees is None or not (info.guarantees.weak() or chosen):
        return
    yield f"engine: {info.name} {info.version} ({info.runtime}), isolation {info.isolation}"
    for kept in Guarantee:
        named = [_WORDS[name] for name, found in info.guarantees if found is kept]
        if named:
            yield f"  {kept.value}: {', '.join(named)}"

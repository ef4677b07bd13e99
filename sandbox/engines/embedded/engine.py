"""The embedded engine as the port has it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager

from arsandbox.sandbox.engines.embedded import environment, program
from arsandbox.sandbox.engines.embedded.cgroups import places
from arsandbox.sandbox.engines.embedded.leftovers import announced
from arsandbox.sandbox.engines.embedded.sandbox import EmbeddedSandbox
from arsandbox.sandbox.engines.port import Sandbox, SandboxSpec
from arsandbox.sandbox.errors import MachineError
from arsandbox.sandbox.models import EngineInfo, Guarantee, Guarantees, ImageRef


class EmbeddedEngine:
    """Sandboxes made by bubblewrap on this machine; there are no images but the host's own environment."""

    def __init__(self, info: EngineInfo) -> None:
        self._info = info

    def sandbox(self, spec: SandboxSpec) -> AbstractContextManager[Sandbox]:
        """See the port."""
        return EmbeddedSandbox(spec)

    def find_image(self, name: str) -> ImageRef | None:
        """See the port: every name means the host's own environment."""
        return environment.image()

    def has_image(self, digest: str) -> bool:
        """See the port: only what is installed here now can be run."""
        return digest == environment.image().digest

    def load_image(self, archive: Iterable[bytes]) -> str:
        """See the port."""
        raise MachineError("the embedded engine runs no images: it uses what is installed here", hint="--engine docker")

    def sweep(self, labels: dict[str, str]) -> list[str]:
        """See the port."""
        removed = []
        for left in announced():
            if labels.items() <= left.labels.items():
                left.remove()
                removed.append(f"sandbox {left.name}")
        return removed

    def labelled(self, label: str) -> set[str]:
        """See the port."""
        return {left.labels[label] for left in announced() if label in left.labels}

    def info(self) -> EngineInfo:
        """See the port."""
        return self._info


def open_engine() -> EmbeddedEngine:
    """Try bubblewrap. Raises MachineError with the one command that helps."""
    found = program.find()
    if (reason := program.obstacle()) is not None:
        raise MachineError(f"the embedded engine cannot be used: {reason[0]}", hint=reason[1])
    return EmbeddedEngine(
        EngineInfo(
            name="embedded",
            version=found.version,
            runtime="bwrap",
            isolation="namespaces",
            privilege="root" if os.geteuid() == 0 else "user",
            guarantees=_guarantees(),
        )
    )


def _guarantees() -> Guarantees:
    """What holds here: a cgroup binds the whole tree; without one a user's means do what they can."""
    root, counted = os.geteuid() == 0, bool(places())
    limited = Guarantee.ENFORCED if counted else Guarantee.BEST_EFFORT
    return Guarantees(
        memory=limited,
        pids=limited,
        cpus=Guarantee.ENFORCED if _has_cpu() else Guarantee.NOT_OFFERED,
        disk=Guarantee.ENFORCED if root else Guarantee.BEST_EFFORT,  # a user's tmpfs limits bytes, not inodes
        deadline_without_controller=Guarantee.ENFORCED,
        own_uid=Guarantee.ENFORCED if root else Guarantee.NOT_OFFERED,
        image=Guarantee.NOT_OFFERED,
        egress=Guarantee.ENFORCED,
    )


def _has_cpu() -> bool:
    found = places()
    if "" in found:
        return "cpu" in (found[""] / "cgroup.subtree_control").read_text().split()
    return "cpu" in found

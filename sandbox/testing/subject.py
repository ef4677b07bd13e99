"""An engine under test, and one sandbox of it from start to removal."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arsandbox.policies.model import MIB, Limits
from arsandbox.sandbox import host, state
from arsandbox.sandbox.engines.fake import Script
from arsandbox.sandbox.engines.port import Collected, Engine, Outcome, ReadOnlyMount, SandboxSpec
from arsandbox.sandbox.models import ChangeSet, Guarantee, Guarantees, ImageRef, Reason, Stage

LIMITS = Limits(
    cpus=1, memory_bytes=96 * MIB, pids=64, disk_bytes=16 * MIB, disk_inodes=4000, tmp_bytes=4 * MIB,
    shm_bytes=MIB, output_bytes=MIB,
)  # fmt: skip
PYTHON = ("python", "program.py")


@dataclass(frozen=True)
class Subject:
    """An engine under test. `name` is its entry point: a second process opens it by that.

    `image` holds `python`. `tell` is for engines that run nothing: it is told by experiment id what the
    program would do.
    """

    name: str
    engine: Engine
    image: ImageRef
    tell: Callable[[str, Script], None] | None = None

    def keeps(self, promise: str) -> Guarantee:
        """What the engine declares for `promise` (a field of Guarantees)."""
        kept = self.engine.info().guarantees or Guarantees(
            **dict.fromkeys(Guarantees.model_fields, Guarantee.NOT_OFFERED)
        )
        found: Guarantee = getattr(kept, promise)
        return found


@dataclass
class Watching:
    """A watcher that keeps everything."""

    output_seen: bytes = b""
    ticks: list[tuple[float, int]] = field(default_factory=list)

    def output(self, chunk: bytes) -> None:
        """Keep it."""
        self.output_seen += chunk

    def tick(self, elapsed_s: float, memory_bytes: int) -> None:
        """Keep it."""
        self.ticks.append((elapsed_s, memory_bytes))


@dataclass(frozen=True)
class Ended:
    """A sandbox that has ended and is gone."""

    spec: SandboxSpec
    outcome: Outcome
    watching: Watching
    changes: ChangeSet
    collected: Collected
    target: Path

    @property
    def reason(self) -> Reason:
        """Why it ended."""
        return self.outcome.termination.reason

    @property
    def output(self) -> bytes:
        """What the watcher was given."""
        return self.watching.output_seen

    @property
    def text(self) -> str:
        """The output, decoded."""
        return self.output.decode(errors="replace")

    @property
    def changed(self) -> dict[str, str]:
        """Path to kind of change."""
        return {one.path: one.change for one in self.changes.paths}


def specify(
    subject: Subject,
    place: Path,
    program: str | None = None,
    *,
    command: Sequence[str] = PYTHON,
    files: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
    deadline_s: float = 30.0,
    mounts: Sequence[ReadOnlyMount] = (),
    **limits: Any,
) -> SandboxSpec:
    """A specification of a sandbox that runs `program` in Python; its directories are made below `place`."""
    layer, scratch = place / "layer", place / "scratch"
    for directory in (place, layer, scratch, place / "target"):
        directory.mkdir(parents=True, exist_ok=True)
    layer.chmod(0o777)
    for name, text in {**(files or {}), **({"program.py": textwrap.dedent(program)} if program else {})}.items():
        file = layer / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.parent.chmod(0o777)
        file.write_text(text)
        file.chmod(0o666)
    identity = state.new_experiment_id()
    return SandboxSpec(
        experiment=identity,
        stage=Stage.TRAIN,
        image=subject.image,
        command=tuple(command),
        environment=dict(environment or {}),
        layers=(layer,),
        mounts=tuple(mounts),
        limits=LIMITS.model_copy(update=limits),
        deadline_s=deadline_s,
        scratch=scratch,
        labels=host.labels(identity, "2030-01-01T00:00:00+00:00"),
    )


def box(
    subject: Subject,
    place: Path,
    program: str | None = None,
    *,
    does: Script | None = None,
    collect: Sequence[str] = (),
    most_bytes: int = 64 * MIB,
    **options: Any,
) -> Ended:
    """Run `program` in a sandbox of its own (see `specify`); `does`: what it amounts to where nothing runs."""
    spec = specify(subject, place, program, **options)
    if subject.tell is not None:
        assert does is not None, "this test is for engines that run processes"
        subject.tell(spec.experiment, does)
    watching = Watching()
    with subject.engine.sandbox(spec) as sandbox:
        outcome = sandbox.run(watching)
        changes = sandbox.changes()
        collected = sandbox.collect(collect, place / "target", most_bytes=most_bytes, most_files=1000)
    return Ended(spec, outcome, watching, changes, collected, place / "target")

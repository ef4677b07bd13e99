"""One sandbox of the Docker engine (or of another one) without a run around it."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest

from arsandbox.policies.model import MIB, Limits
from arsandbox.sandbox import host, state
from arsandbox.sandbox.engines.port import Collected, Engine, Outcome, SandboxSpec
from arsandbox.sandbox.engines.registry import open_engine
from arsandbox.sandbox.models import ChangeSet, ImageRef, Reason, Stage
from arsandbox_fixtures.docker_engine import collect_quietly
from arsandbox_fixtures.image import image_digest
from arsandbox_fixtures.leftovers import mounts_below

LIMITS = Limits(
    cpus=1, memory_bytes=96 * MIB, pids=64, disk_bytes=16 * MIB, disk_inodes=4000, tmp_bytes=4 * MIB,
    shm_bytes=MIB, output_bytes=MIB,
)  # fmt: skip


class Collecting:
    """A watcher that keeps the output and counts its ticks."""

    def __init__(self) -> None:
        self.text = b""
        self.ticks = 0

    def output(self, chunk: bytes) -> None:
        """More of the output."""
        self.text += chunk

    def tick(self, elapsed_s: float, memory_bytes: int) -> None:
        """It is still running."""
        self.ticks += 1


@dataclass
class Boxed:
    """A sandbox that has ended: its outcome, output and workspace."""

    outcome: Outcome
    output: bytes
    changes: ChangeSet
    collected: Collected
    target: Path
    home_free_before: int
    home_free_after: int

    @property
    def reason(self) -> Reason:
        """Why it ended."""
        return self.outcome.termination.reason

    @property
    def text(self) -> str:
        """What it printed."""
        return self.output.decode(errors="replace")


def run_box(place: Path, program: str | None = None, **options: Any) -> Boxed:
    """Run `program` in a sandbox of its own; `place` is an empty directory of the test on a plain path."""
    try:
        return _box(place, program, **options)
    finally:
        collect_quietly()


def _box(
    place: Path,
    program: str | None = None,
    *,
    command: Sequence[str] = ("python", "program.py"),
    files: dict[str, str] | None = None,
    environment: dict[str, str] | None = None,
    deadline_s: float = 20.0,
    collect: Sequence[str] = (),
    most_bytes: int = 64 * MIB,
    engine: Engine | None = None,
    **limits: Any,
) -> Boxed:
    digest = image_digest()
    layer, scratch, target = place / "layer", place / "scratch", place / "target"
    for directory in (layer, scratch, target):
        directory.mkdir()
    layer.chmod(0o777)
    for name, text in {**(files or {}), **({"program.py": textwrap.dedent(program)} if program else {})}.items():
        file = layer / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.parent.chmod(0o777)
        file.write_text(text)
        file.chmod(0o666)
    identity = state.new_experiment_id()
    spec = SandboxSpec(
        experiment=identity,
        stage=Stage.TRAIN,
        image=ImageRef(name="cpu", digest=digest),
        command=tuple(command),
        environment=environment or {},
        layers=(layer,),
        limits=LIMITS.model_copy(update=limits),
        deadline_s=deadline_s,
        scratch=scratch,
        labels=host.labels(identity, "2030-01-01T00:00:00+00:00"),
    )
    watcher = Collecting()
    before = shutil.disk_usage(place).free
    with (engine or open_engine("docker")).sandbox(spec) as sandbox:
        outcome = sandbox.run(watcher)
        changes = sandbox.changes()
        collected = sandbox.collect(collect, target, most_bytes=most_bytes, most_files=1000)
        after = shutil.disk_usage(place).free
    del sandbox
    assert not mounts_below(scratch)
    return Boxed(outcome, watcher.text, changes, collected, target, before, after)


class RunBox(Protocol):
    """The fixture `box`; the options are those of `_box`."""

    def __call__(self, program: str | None = None, **options: Any) -> Boxed:
        """What came of `program`."""


@pytest.fixture
def box(home: Path, tmp_path: Path) -> RunBox:
    """Runs a program in a sandbox of its own."""
    count = iter(range(1000))

    def run(program: str | None = None, **options: Any) -> Boxed:
        place = tmp_path / f"box{next(count)}"
        place.mkdir()
        return run_box(place, program, **options)

    return run

"""Projects as repositories, one for each trust level, and edits run in them through the Python API."""

from __future__ import annotations

import itertools
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from arsandbox.sandbox import experiment, hand_promotion, planning
from arsandbox.sandbox.engines.port import Engine
from arsandbox.sandbox.engines.registry import open_engine
from arsandbox.sandbox.events import Silent
from arsandbox.sandbox.imaging import catalogue
from arsandbox.sandbox.ledger import Ledger
from arsandbox.sandbox.models import ImageRef, Verdict
from arsandbox.sandbox.record import Record
from arsandbox.sandbox.repository import Repository
from arsandbox.sandbox.rerun import rerun
from arsandbox.sandbox.settings import Options

# One seed for baselines and edits: what is compared here is cheating, not luck.
SEED = 7


@dataclass
class Task:
    """A repository whose config asks for one trust level; `sealed`: a winner is promoted once its audit agrees."""

    path: Path
    level: str
    engine: Engine
    sealed: bool
    _tags: itertools.count[int] = field(default_factory=itertools.count)

    def run(self, patch: Path, *, runs: int = 1) -> Record:
        """The record of the last of `runs` experiments with that edit, each against the base."""
        for _ in range(runs):
            options = Options(
                tag=f"t{next(self._tags)}", accept_self_reported=True, seed=SEED, audit=self.level == "L4",
                promote=not self.sealed,
            )  # fmt: skip
            request = planning.Request(self.path, options, patch=patch)
            record = experiment.run(planning.plan(request, find_image=_image), self.engine, Silent())
        return self._released(record) if self.sealed and record.verdict is Verdict.KEEP else record

    def _released(self, record: Record) -> Record:
        """The promotion of a winner whose sealed value bears it out, else the audit that does not."""
        repository = Repository.open(self.path)
        assert record.baseline is not None
        with Ledger.open(repository.state) as ledger:
            base = ledger.get(record.baseline.experiment)
        for one in (base, record):
            audit = rerun(repository, one, self.engine, Silent(), mode="audit")
        if audit.verdict is not Verdict.AGREES:
            return audit
        return hand_promotion.promote(repository, record, accept_self_reported=False)

    def log(self, record: Record, stage: str = "train") -> bytes:
        """What a stage of that experiment printed."""
        file = Repository.open(self.path).state / "experiments" / record.id / f"{stage}.log"
        return file.read_bytes() if file.exists() else b""


def create(path: Path, level: str, files: dict[str, bytes], config: str) -> Task:
    """A repository at `path` with one commit."""
    for name, content in {**files, "arsandbox.toml": config.encode()}.items():
        target = path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    for command in (["init", "-q", "-b", "main"], ["add", "-A", "-f"], ["commit", "-q", "-m", "base"]):
        subprocess.run(
            ["git", "-c", "user.name=someone", "-c", "user.email=someone@example.org", *command], cwd=path, check=True
        )
    return Task(path, level, open_engine("docker"), sealed=level == "L4" and "\nsealed = " in config)


def _image(name: str) -> ImageRef:
    pinned = catalogue().resolve(name)
    return ImageRef(name=pinned.name, digest=pinned.digest)

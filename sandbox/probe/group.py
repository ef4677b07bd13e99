"""Many attacks in one sandbox: they only look and try, and each has a process of its own."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from arsandbox.policies.model import Limits
from arsandbox.sandbox import host, state
from arsandbox.sandbox.engines.port import Engine, SandboxSpec
from arsandbox.sandbox.errors import MachineError
from arsandbox.sandbox.models import ImageRef, Model, Stage, utc_now
from arsandbox.sandbox.probe import inside
from arsandbox.sandbox.probe.catalogue import Attack

_DEADLINE_S = 120.0


class Answer(Model):
    """What came of one attack, as its payload saw it."""

    name: str
    outcome: Literal["stopped", "succeeded", "broken"]
    detail: str
    errno: str = ""


class _Output:
    """Keeps the sandbox's output."""

    def __init__(self) -> None:
        self.text = b""

    def output(self, chunk: bytes) -> None:
        """See the port."""
        self.text += chunk

    def tick(self, elapsed_s: float, memory_bytes: int) -> None:
        """See the port."""


def attempt(
    engine: Engine,
    image: ImageRef,
    attacks: Sequence[Attack],
    limits: Limits,
    *,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Answer]:
    """Try all of `attacks` in one sandbox; the answers by the attacks' names. Raises MachineError."""
    identity = state.new_experiment_id()
    place = Path(tempfile.mkdtemp(prefix="probe-", dir=state.make_private(state.home() / "probes")))
    watcher = _Output()
    try:
        layer, scratch = _furnished(place, attacks), place / "scratch"
        scratch.mkdir()
        spec = SandboxSpec(
            experiment=identity,
            stage=Stage.TRAIN,
            image=image,
            command=("python3", "-I", "-S", "inside.py", *(f"attacks/{attack.name}.py" for attack in attacks)),
            environment=dict(environment or {}),
            layers=(layer,),
            limits=limits,
            deadline_s=_DEADLINE_S,
            scratch=scratch,
            labels=host.labels(identity, utc_now()),
        )
        with engine.sandbox(spec) as sandbox:
            ended = sandbox.run(watcher).termination
    finally:
        shutil.rmtree(place, ignore_errors=True)
    answers = _answers(watcher.text)
    missing = [attack.name for attack in attacks if attack.name not in answers]
    if missing:
        said = state.printable(watcher.text.decode("utf-8", "replace")[-300:])
        raise MachineError(f"the probe {missing[0]} did not answer ({ended.detail}): {said}")
    return answers


def _furnished(place: Path, attacks: Sequence[Attack]) -> Path:
    layer = place / "layer"
    (layer / "attacks").mkdir(parents=True)
    (layer / "inside.py").write_text(Path(inside.__file__).read_text("utf-8"))
    for attack in attacks:
        (layer / "attacks" / f"{attack.name}.py").write_text(attack.payload)
    for directory in (place, layer, layer / "attacks"):
        directory.chmod(0o755)
    return layer


def _answers(text: bytes) -> dict[str, Answer]:
    found = {}
    for line in text.decode("utf-8", "replace").splitlines():
        if line.startswith("ATTACK "):
            try:
                answer = Answer.model_validate(json.loads(line[7:]))
            except (ValueError, ValidationError) as error:
                raise MachineError(f"a probe's answer cannot be read: {error}") from error
            found[answer.name] = answer
    return found

"""The demo's story: five real experiments on the tiny-lm example in a git repository made for it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from importlib.util import find_spec
from pathlib import Path

from arsandbox.sandbox import experiment
from arsandbox.sandbox.engines.port import Engine
from arsandbox.sandbox.errors import MachineError
from arsandbox.sandbox.events import Listener
from arsandbox.sandbox.models import Guarantee, ImageRef, Verdict
from arsandbox.sandbox.record import Record
from arsandbox.sandbox.repository import create_repository
from arsandbox.sandbox.settings import Options

IMAGE = "cpu"
STEPS = 300
# (patch, what it is, the verdicts that are right)
CHAPTERS: tuple[tuple[str | None, str, tuple[Verdict, ...]], ...] = (
    (None, "the baseline, unchanged", (Verdict.BASELINE,)),
    ("winner", "a better learning rate", (Verdict.KEEP,)),
    ("loser", "a context of one byte", (Verdict.DISCARD,)),
    ("cheat", "prints a better number than it has", (Verdict.DISCARD, Verdict.TAMPERED)),
    ("memory-bomb", "allocates without end", (Verdict.OOM,)),
)
_WITHOUT_LIMIT = (Verdict.OOM, Verdict.CRASH)
_PACKAGES = ("numpy", "safetensors")
_CONFIG_TAIL = f"""
[environment]
TINY_LM_STEPS = "{STEPS}"  # a fixed number of steps: the demo's story is the same on a busy machine
"""


def tell(place: Path, image: ImageRef, engine: Engine, listener: Listener) -> Iterator[Record]:
    """Make the repository in `place` and run the chapters, yielding each record as it is written."""
    examples = files("arsandbox") / "examples"
    content = dict(_files(examples / "tiny-lm", ""))
    content["arsandbox.toml"] += _CONFIG_TAIL.encode()
    content |= {f"edits/{path}": patch for path, patch in _files(examples / "tiny-lm-edits", "")}
    create_repository(place, content, message="tiny-lm: the base")
    for patch, description, _ in CHAPTERS:
        file = place / "edits" / f"{patch}.patch" if patch is not None else None
        options = Options(budget_s=60.0, description=description)
        listener.note(f"{patch or 'baseline'}: {description}")
        request = experiment.Request(place, options, patch=file)
        yield experiment.run(experiment.plan(request, find_image=lambda _: image), engine, listener)


def require_packages(engine: Engine) -> None:
    """Raises MachineError where `engine` runs this machine's Python and that lacks what the task imports."""
    if engine.find_image(IMAGE) is None:
        return
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise MachineError(
            f"the demo's task needs {' and '.join(missing)}, and the {engine.info().name} engine runs what is installed"
            " here",
            hint=f"{sys.executable} -m pip install {' '.join(missing)}",
        )


def unexpected(records: Sequence[Record]) -> list[str]:
    """What differs from the story as it should be told; empty when all is right."""
    lines = [
        f"unexpected: {patch or 'baseline'} ended as {record.verdict.value}: {record.reason}"
        for (patch, _, right), record in zip(CHAPTERS, records, strict=False)
        if record.verdict not in (right if patch != "memory-bomb" or _limits_memory(record) else _WITHOUT_LIMIT)
    ]
    promoted = [record for record in records if record.promotion is not None]
    if len(promoted) != 1:
        lines.append(f"unexpected: {len(promoted)} promotions instead of one")
    return lines


def _limits_memory(record: Record) -> bool:
    """Whether the engine promised that the kernel ends whoever takes too much; else the program is refused more."""
    kept = record.engine.guarantees if record.engine is not None else None
    return kept is None or kept.memory is Guarantee.ENFORCED


def _files(directory: Traversable, prefix: str) -> Iterator[tuple[str, bytes]]:
    for entry in directory.iterdir():
        path = f"{prefix}{entry.name}"
        if entry.is_dir():
            if entry.name not in ("__pycache__", "data", "heldout", "out"):
                yield from _files(entry, path + "/")
        else:
            yield path, entry.read_bytes()

"""What kind of repository this is, and the arsandbox.toml to start with."""

from __future__ import annotations

import os
from pathlib import Path

from arsandbox.images.layers import write_atomically
from arsandbox.sandbox import autoresearch, config
from arsandbox.sandbox.errors import UsageError

_HEAD = """\
# Read from the base commit; a candidate cannot change it. See docs/configuration.md.
image = "{image}"
budget = "{budget}"
command = ["python", "train.py"]
editable = ["train.py"]
protected = [{protected}]

[metric]
name = "{metric}"
goal = "min"
source = "{source}"  # evaluate: measured apart by trusted code; stdout: what the run prints (self-reported)
"""
_PREPARE = """
[prepare]  # runs once per base, trusted code; its outputs are frozen by digest
command = ["python", "prepare.py"]
outputs = ["data/"]
"""
_EVALUATE = """
[evaluate]  # the base commit's evaluator, in its own container, on the declared artifacts only
command = ["python", "evaluate.py", "out/"]
artifacts = ["out/"]
data = []  # paths that only the evaluation may see
"""


def starting_config(worktree: Path, *, force: bool) -> tuple[str, Path]:
    """Write arsandbox.toml into `worktree`; returns (kind of layout, path). Raises UsageError."""
    target = worktree / config.FILE_NAME
    if os.path.lexists(target) and not force:
        raise UsageError(f"{target} exists already", hint="edit it, or replace it with --force")
    present = {name for name in ("prepare.py", "train.py", "evaluate.py", "program.md") if (worktree / name).is_file()}
    if "train.py" not in present:
        raise UsageError(
            f"{worktree} has no train.py: its layout is not known",
            hint="write arsandbox.toml by hand (docs/configuration.md)",
        )
    protected = sorted(present - {"train.py"})
    if autoresearch.recognised(worktree):
        text = autoresearch.starting_config(worktree, protected)
        config.parse(text, config.FILE_NAME)
        write_atomically(target, text.encode())  # in place of a link, never through it
        return "karpathy/autoresearch, on a GPU", target
    kind = "autoresearch layout" if {"prepare.py", "program.md"} <= present else "train.py"
    evaluated = "evaluate.py" in present
    text = _HEAD.format(
        image="cpu",
        budget="5m",
        protected=", ".join(f'"{name}"' for name in protected),
        metric="val_bpb" if kind == "autoresearch layout" else "val_loss",
        source="evaluate" if evaluated else "stdout",
    )
    if "prepare.py" in present:
        text += _PREPARE
    if evaluated:
        text += _EVALUATE
    config.parse(text, config.FILE_NAME)
    write_atomically(target, text.encode())  # in place of a link, never through it
    return kind, target

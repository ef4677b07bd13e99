"""Which proposer a text names."""

from __future__ import annotations

from pathlib import Path

from arsandbox.sandbox.errors import UsageError
from arsandbox.sandbox.proposers.patches import Patches
from arsandbox.sandbox.proposers.port import NAMES, Proposer, ProposerContext, ProposerSpec


def opened(spec: ProposerSpec, context: ProposerContext) -> Proposer:
    """The proposer that `spec` names. Raises UsageError, MachineError."""
    kind, _, argument = spec.text.strip().partition(":")
    if kind == "patches":
        return Patches(Path(argument).expanduser(), context.repository.objects, context.past())
    raise UsageError(f"--propose {spec.text!r}: not known", hint=f"name one of {', '.join(NAMES)}, or a command")

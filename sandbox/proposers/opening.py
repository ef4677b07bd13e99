"""Which proposer a text names."""

from __future__ import annotations

import difflib
import shlex
from pathlib import Path

from arsandbox.sandbox.errors import UsageError
from arsandbox.sandbox.proposers import aider
from arsandbox.sandbox.proposers.command import CommandProposer
from arsandbox.sandbox.proposers.on_host import HostProposer
from arsandbox.sandbox.proposers.patches import Patches
from arsandbox.sandbox.proposers.port import Proposer, ProposerContext, ProposerSpec
from arsandbox.sandbox.proposers.sweep import Sweep
from arsandbox.sandbox.requirements import require_engine

_KINDS = ("aider", "command", "patches", "sweep")


def opened(spec: ProposerSpec, context: ProposerContext) -> Proposer:
    """The proposer that `spec` names; what is none of the names is a command line. Raises UsageError, MachineError."""
    text = spec.text.strip()
    kind, _, argument = text.partition(":")
    objects, settings = context.repository.objects, context.settings
    if kind == "patches":
        return Patches(Path(argument or ".").expanduser(), context.past(), context.waiting())
    if kind == "sweep":
        if (argument and not argument.isascii()) or (argument and not argument.isdigit()):
            raise UsageError(f"--propose {text}: the seed is not a number", hint="--propose sweep:7")
        return Sweep(objects, settings.rules, context.past(), seed=int(argument or 0), waiting=context.waiting())
    if not context.trusted:
        require_engine(settings.policy_for("propose"), context.engine.info())
    place = HostProposer if context.trusted else CommandProposer
    if kind == "aider":
        program = aider.installed(context)

        def started(folder: str, champion: str) -> tuple[str, ...]:
            return aider.command(program, folder, aider.editable_files(champion, objects, settings.rules), argument)

        return place("aider", started, spec, context)
    if kind not in _KINDS and " " not in text and (near := difflib.get_close_matches(kind, _KINDS, n=1, cutoff=0.75)):
        raise UsageError(f"--propose {text}: did you mean {near[0]!r}?", hint=f"a command of that name: command:{text}")
    words = _words(argument if kind == "command" else text, text)
    return place("command", lambda folder, champion: words, spec, context)


def _words(line: str, text: str) -> tuple[str, ...]:
    try:
        words = tuple(shlex.split(line))
    except ValueError as error:
        raise UsageError(f"--propose {text!r}: {error}", hint="quote the command like a shell would") from error
    if not words:
        raise UsageError(f"--propose {text!r}: names no command", hint="--propose 'python agent.py'")
    return words

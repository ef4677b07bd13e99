"""aider (https://aider.chat) as a proposer: its command line, and whether it is there at all.

Options: https://aider.chat/docs/config/options.html.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable

from arsandbox.policies.edits import EditRules
from arsandbox.sandbox.errors import MachineError
from arsandbox.sandbox.models import Reason, Stage
from arsandbox.sandbox.objects import ObjectStore
from arsandbox.sandbox.proposers.port import ProposerContext
from arsandbox.sandbox.stage import StagePlan, run_stage

# Linting runs `python -m flake8` among the champion's files, where a module of theirs could stand in for one of
# Python's: on the host that would run untrusted code. `--no-analytics` is for this run; `--analytics-disable` would
# change the owner's own settings. Histories would be files beside the edit. LiteLLM fetches its price list unless told.
_QUIET = (
    "--yes-always", "--no-git", "--no-auto-lint", "--no-auto-test", "--no-check-update", "--no-show-release-notes",
    "--no-analytics", "--no-show-model-warnings", "--no-pretty", "--no-stream", "--no-fancy-input",
    "--no-suggest-shell-commands", "--no-detect-urls", "--no-restore-chat-history",
    "--input-history-file", "/dev/null", "--chat-history-file", "/dev/null",
    "--set-env", "LITELLM_LOCAL_MODEL_COST_MAP=True",
)  # fmt: skip
_SCRIPT = ("aider",)
# Built images and the embedded engine have no scripts of packages. -I: no module of the workspace's is imported.
_MODULE = ("python3", "-I", "-m", "aider")
_PROBE_S = 120.0
_MOST_FILES = 50


def command(program: tuple[str, ...], folder: str, files: Iterable[str], model: str) -> tuple[str, ...]:
    """`program`'s command line: one message, the `files` to edit, `model` where it is named."""
    chosen = ("--model", model) if model else ()
    # ./: a name that begins with a dash is no option.
    return (*program, *_QUIET, *chosen, "--message-file", f"{folder}/message.md", *(f"./{path}" for path in files))


def editable_files(champion: str, objects: ObjectStore, rules: EditRules) -> list[str]:
    """The champion's regular files that may be edited, by path: at most 50, since each is sent to the model."""
    entries = objects.entries(objects.tree_of(champion))
    found = [e.path for e in entries if e.mode in ("100644", "100755") and rules.is_editable(e.path)]
    return sorted(found)[:_MOST_FILES]


def installed(context: ProposerContext) -> tuple[str, ...]:
    """How aider is started where this proposer would run it. Raises MachineError where it cannot be."""
    if context.trusted:
        if shutil.which(_SCRIPT[0]) is None:
            raise MachineError("aider is not installed on this machine", hint="python -m pip install aider-chat")
        return _SCRIPT
    for program in (_SCRIPT, _MODULE):
        if _starts(program, context):
            return program
    raise MachineError(
        f"aider is not installed in the image {context.image.name}",
        hint="use an image that holds it, or run the host's aider: --trusted-proposer",
    )


def _starts(program: tuple[str, ...], context: ProposerContext) -> bool:
    with context.run_directory() as place:
        workspace = place.scratch / "empty"
        workspace.mkdir()
        plan = StagePlan(
            stage=Stage.PROPOSE, image=context.image, command=(*program, "--version"), environment={},
            layers=(workspace,),
            limits=context.settings.policy_for("propose").limits, limit_s=_PROBE_S, log=place.scratch / "aider.log",
        )  # fmt: skip
        labels = place.labels(_PROBE_S)
        with run_stage(
            context.engine, plan, experiment=place.id, scratch=place.scratch, labels=labels, listener=context.listener
        ) as run:
            return run.outcome.termination.reason is Reason.COMPLETED

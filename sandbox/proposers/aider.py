"""aider (https://aider.chat) as a proposer: its command line, and whether it is there at all.

Options: https://aider.chat/docs/config/options.html.
"""

from __future__ import annotations

import shutil

from arsandbox.sandbox.errors import MachineError
from arsandbox.sandbox.models import Reason, Stage
from arsandbox.sandbox.proposers.port import ProposerContext
from arsandbox.sandbox.stage import StagePlan, run_stage

_QUIET = (
    "--yes-always", "--no-git", "--no-check-update", "--no-show-release-notes", "--analytics-disable",
    "--no-pretty", "--no-stream", "--no-fancy-input", "--no-suggest-shell-commands", "--no-detect-urls",
)  # fmt: skip
_PROBE_S = 120.0


def command(folder: str, files: tuple[str, ...], model: str) -> tuple[str, ...]:
    """aider's command line: one message, the editable `files` that are plain paths, `model` where it is named."""
    chosen = ("--model", model) if model else ()
    plain = [path for path in files if not any(character in path for character in "*?[") and not path.endswith("/")]
    return ("aider", *_QUIET, *chosen, "--message-file", f"{folder}/message.md", *plain)


def require_installed(context: ProposerContext) -> None:
    """Raise MachineError unless aider can be run where this proposer would run it."""
    if context.trusted:
        if shutil.which("aider") is None:
            raise MachineError("aider is not installed on this machine", hint="python -m pip install aider-chat")
        return
    with context.run_directory() as place:
        workspace = place.scratch / "empty"
        workspace.mkdir()
        plan = StagePlan(
            stage=Stage.PROPOSE, image=context.image, command=("aider", "--version"), environment={},
            layers=(workspace,),
            limits=context.settings.policy_for("propose").limits, limit_s=_PROBE_S, log=place.scratch / "aider.log",
        )  # fmt: skip
        labels = place.labels(_PROBE_S)
        with run_stage(
            context.engine, plan, experiment=place.id, scratch=place.scratch, labels=labels, listener=context.listener
        ) as run:
            if run.outcome.termination.reason is not Reason.COMPLETED:
                raise MachineError(
                    f"aider is not installed in the image {context.image.name}",
                    hint="use an image that holds it, or run the host's aider: --trusted-proposer",
                )

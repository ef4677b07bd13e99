"""A trusted proposer: a command on the host, in a throw-away copy of the champion. It is not contained.

Only an explicit --trusted-proposer leads here. Nothing that it leaves is run by us: its copy is read by
descriptors, and only editable paths count.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

from arsandbox.sandbox import candidate as candidates
from arsandbox.sandbox.models import Finding, Reason, Termination
from arsandbox.sandbox.proposers.brief import write_folder
from arsandbox.sandbox.proposers.command import LOG_NAME, described, guarded, told
from arsandbox.sandbox.proposers.credentials import Credentials
from arsandbox.sandbox.proposers.port import Brief, Proposal, ProposerContext, ProposerSpec
from arsandbox.sandbox.run_directory import RunDirectory
from arsandbox.sandbox.workspace.upper import remove_tree

_LAST_WORDS_S = 5.0


class HostProposer:
    """Runs `command_of(brief folder, champion)` on the host, with the owner's environment and no containment."""

    def __init__(
        self, name: str, command_of: Callable[[str, str], tuple[str, ...]], spec: ProposerSpec, context: ProposerContext
    ) -> None:
        self._name, self._command_of, self._spec, self._context = name, command_of, spec, context
        self._policy = context.settings.policy_for("propose")
        self._credentials = Credentials.from_environment(spec.credentials, self._policy)

    @property
    def name(self) -> str:
        """What the record's reader should call it."""
        return f"{self._name} (on the host)"

    # A command is an agent more often than not: it is to know how its last edit did, and that it conflicted.
    ahead, queued = 0, False

    def propose(self, brief: Brief) -> Proposal | None:
        """One round. How the command failed is in the proposal; raises ArsandboxError for our own failures."""
        context = self._context
        objects = context.repository.objects
        with context.run_directory() as place:
            folder, copy = place.scratch / "brief", place.scratch / "copy"
            write_folder(folder, brief, objects, context.settings)
            copy.mkdir()
            context.layers.write_copy(brief.champion, copy, without=context.settings.heldout)
            try:
                ended = self._run(brief, folder, copy, place)
                found = Proposal(termination=ended)
                if ended.reason is Reason.COMPLETED:
                    seen = candidates.from_copy(objects, brief.champion, copy, context.settings.rules)
                    findings = tuple(
                        Finding(code="outside_editable", detail=f"{path!a} is not editable: left out")
                        for path in seen.left_out
                    )
                    found = guarded(seen.diff, findings, self._credentials)
            finally:
                self._credentials.keep_log(place.scratch / LOG_NAME, place.keep / LOG_NAME)
                remove_tree(str(copy))
            log = place.keep / LOG_NAME
            return found.model_copy(update={"log": log, "description": described(self._name, log)})

    def _run(self, brief: Brief, folder: Path, copy: Path, place: RunDirectory) -> Termination:
        limit = min(self._spec.limit_s, self._policy.limits.wall_s)
        command = self._command_of(str(folder), brief.champion)
        try:
            process = subprocess.Popen(
                command, cwd=copy, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                env={**os.environ, **told(brief, str(folder))}, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            return _ended(Reason.CRASH, None, f"{command[0]}: {error.strerror}")
        reader = threading.Thread(
            target=_drain, args=(process, place.scratch / LOG_NAME, self._policy.limits.output_bytes), daemon=True
        )
        reader.start()
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            return _ended(Reason.TIMEOUT, None, f"still running after {limit:g} s")
        finally:
            _end(process)
            reader.join(_LAST_WORDS_S)  # a process that left the group may hold the pipe open for ever
        if code != 0:
            return _ended(Reason.CRASH, code, f"{command[0]} ended with exit code {code}")
        return _ended(Reason.COMPLETED, 0, "exit code 0")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the whole process group, whoever in it still lives."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def _drain(process: subprocess.Popen[bytes], log: Path, most_bytes: int) -> None:
    """Keep at most `most_bytes` of the output and read the rest away."""
    assert process.stdout is not None  # noqa: S101 - a pipe was asked for
    left = most_bytes
    with log.open("wb", buffering=0) as file, process.stdout as stream:
        while block := os.read(stream.fileno(), 65_536):
            file.write(block[:left])
            left -= len(block[:left])


def _ended(reason: Reason, code: int | None, detail: str) -> Termination:
    number = -code if code is not None and code < 0 else None
    return Termination(reason=reason, exit_code=code if number is None else None, signal=number, detail=detail)

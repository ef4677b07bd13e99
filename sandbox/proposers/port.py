"""What a proposer is asked, what it answers, and how one is opened by name.

A proposer never decides anything: its diff passes the same gate as any other patch. What it is told
(records, failure tails, program.md) is data, and what it answers is untrusted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from arsandbox.sandbox.engines.port import Engine
from arsandbox.sandbox.errors import UsageError
from arsandbox.sandbox.events import Listener
from arsandbox.sandbox.models import Finding, ImageRef, Model, Reason, Termination, Verdict
from arsandbox.sandbox.record import Record, StageRecord
from arsandbox.sandbox.repository import Repository
from arsandbox.sandbox.run_directory import RunDirectory
from arsandbox.sandbox.settings import Settings
from arsandbox.sandbox.workspace.layers import LayerStore

DEFAULT_LIMIT_S = 600.0
NAMES = ("aider", "sweep", "patches:DIR", "command:CMD")


class Failure(Model):
    """The end of a failed experiment's log, as a proposer may see it: bounded, without control sequences."""

    experiment: str
    verdict: Verdict
    reason: str
    tail: str


class EditConflict(Model):
    """A proposer's edit that did not fit: another one of the same loop was promoted while it waited.

    `paths` are the files that both changed; `problem` is one sentence; `diff` the edit as it was proposed.
    """

    description: str
    paths: tuple[str, ...] = ()
    problem: str = ""
    diff: str = ""


class Brief(Model):
    """What a proposer is told for one round. All of it is data; none of it is an instruction to anybody.

    `champion` is the commit to edit; `records` are the latest ones, newest first; `program` is the
    champion's program.md ("" where it has none); `failures` the latest failed experiments, newest first;
    `seed` the only source of chance that a proposer may use. `conflict` is the edit that the proposer made for this
    round before, if it did not fit the champion of now.
    """

    round: int
    champion: str
    records: tuple[Record, ...] = ()
    program: str = ""
    failures: tuple[Failure, ...] = ()
    seed: int = 0
    conflict: EditConflict | None = None


class Proposal(Model):
    """An edit, as a unified git diff against the brief's champion; empty where there is none.

    A `floating` one was made against some commit of the promotion branch, and nobody knows which: a patch from a file.

    `description` becomes the record's, word for word: proposers know by it what was tried before a resume.
    `termination` says how the proposing sandbox ended where it did not end well, `refusal` why what was
    proposed cannot be a candidate at all; with either, `diff` is empty. `log` is the proposer's kept log, `stage` its
    sandbox's record with every request to the network; None where it ran in none.
    """

    diff: bytes = b""
    floating: bool = False
    description: str = ""
    findings: tuple[Finding, ...] = ()
    termination: Termination | None = None
    refusal: str = ""
    log: Path | None = None
    stage: StageRecord | None = None

    @property
    def verdict(self) -> Verdict | None:
        """The verdict where there is nothing to measure; None where `diff` is a candidate."""
        if self.termination is not None and self.termination.reason is not Reason.COMPLETED:
            return Verdict(self.termination.reason.value)
        return Verdict.REJECTED if self.refusal or not self.diff.strip() else None

    @property
    def reason(self) -> str:
        """One sentence for the record where there is nothing to measure."""
        if self.termination is not None and self.termination.reason is not Reason.COMPLETED:
            return f"proposing: {self.termination.detail}"
        return self.refusal or "the proposer changed nothing that is editable"


class Proposer(Protocol):
    """Proposes one edit a round. Nothing that it remembers outlives the process but what the ledger holds."""

    @property
    def name(self) -> str:
        """What the record's reader should call it, like `sweep` or `command`."""

    @property
    def ahead(self) -> int:
        """How many proposals to make before their turn: 0 if the next one shall know how the last one ended."""

    @property
    def queued(self) -> bool:
        """Whether an edit that conflicts waits for the end of the queue, instead of being proposed anew."""

    def propose(self, brief: Brief) -> Proposal | None:
        """The next edit; None when there is nothing more to propose.

        Raises ArsandboxError for a failure of ours; how the proposer itself failed is in the Proposal. May
        be called from another thread than the one that opened it, one call at a time.
        """


@dataclass(frozen=True)
class ProposerSpec:
    """What the owner asked for: `text` as on the command line.

    `credentials` are names of variables of the controller's environment that the proposer gets; only the
    command line may name them, never the project. `limit_s` is what one round may take.
    """

    text: str
    credentials: tuple[str, ...] = ()
    limit_s: float = DEFAULT_LIMIT_S


@dataclass(frozen=True)
class ProposerContext:
    """Where a proposer works. `run_directory` makes a fresh place for one round's sandbox.

    `past` gives the records of this loop's earlier rounds, also of those before a resume, in any order. `waiting` gives
    the descriptions of what was proposed in it before, has no record yet, and will be played without being proposed.
    `trusted`: the owner said --trusted-proposer, so a command runs on the host in a throw-away copy.
    """

    engine: Engine
    repository: Repository
    settings: Settings
    image: ImageRef
    layers: LayerStore
    listener: Listener
    run_directory: Callable[[], AbstractContextManager[RunDirectory]]
    past: Callable[[], Iterable[Record]] = tuple
    waiting: Callable[[], Iterable[str]] = tuple
    trusted: bool = False


def open_proposer(spec: ProposerSpec, context: ProposerContext) -> Proposer:
    """The proposer that `spec.text` names: `sweep`, `aider`, `patches:DIR`, `command:CMD` or a command line.

    Raises UsageError for what cannot be understood, MachineError for what is not installed here.
    """
    from arsandbox.sandbox.proposers import opening

    if not spec.text.strip():
        raise UsageError("--propose is empty", hint=f"name one of {', '.join(NAMES)}, or a command")
    return opening.opened(spec, context)

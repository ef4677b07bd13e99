"""What a sandbox is asked and how it ended: the words that every part shares (the record of it all is in record.py).

All models are frozen and closed. Times are RFC 3339 UTC strings, durations seconds, sizes bytes.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Goal = Literal["min", "max"]
# How a value came about, weakest first: docs/integrity.md.
Trust = Literal["L0", "L1", "L2", "L3", "L4"]


class Model(BaseModel):
    """Base of all domain data: immutable, unknown keys refused, NaN and infinities kept out of JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")


class Stage(StrEnum):
    """One kind of sandbox in an experiment."""

    PREPARE = "prepare"
    TRAIN = "train"
    EVALUATE = "evaluate"
    MODEL = "model"
    SCORE = "score"
    PROPOSE = "propose"


class Reason(StrEnum):
    """How a sandbox ended, told by the host's evidence."""

    COMPLETED = "completed"
    CRASH = "crash"
    TIMEOUT = "timeout"
    OOM = "oom"
    PIDS = "pids"
    DISK = "disk"
    OUTPUT = "output"
    VRAM = "vram"
    INTERRUPTED = "interrupted"


class Verdict(StrEnum):
    """What an experiment came to."""

    BASELINE = "baseline"
    KEEP = "keep"
    DISCARD = "discard"
    PENDING = "pending"
    CRASH = "crash"
    TIMEOUT = "timeout"
    OOM = "oom"
    PIDS = "pids"
    DISK = "disk"
    OUTPUT = "output"
    VRAM = "vram"
    NO_METRIC = "no_metric"
    REJECTED = "rejected"
    TAMPERED = "tampered"
    QUARANTINE = "quarantine"
    INVALID = "invalid"
    INTERRUPTED = "interrupted"
    MEASURED = "measured"
    AGREES = "agrees"
    DISAGREES = "disagrees"

    @property
    def exit_code(self) -> int:
        """The process exit code that this verdict ends `arsandbox run` with."""
        if self in _FINISHED:
            return 0
        if self in _REFUSED:
            return 3
        return 130 if self is Verdict.INTERRUPTED else 1


_FINISHED = {
    Verdict.BASELINE,
    Verdict.KEEP,
    Verdict.DISCARD,
    Verdict.PENDING,
    Verdict.MEASURED,
    Verdict.AGREES,
}
_REFUSED = {Verdict.REJECTED, Verdict.TAMPERED, Verdict.QUARANTINE}


class Termination(Model):
    """How a sandbox ended: the typed reason, and the evidence for it in one sentence."""

    reason: Reason
    exit_code: int | None
    signal: int | None
    detail: str


class Usage(Model):
    """What a sandbox used, measured from the host."""

    cpu_s: float = 0.0
    peak_memory_bytes: int = 0
    peak_pids: int = 0
    disk_bytes: int = 0
    output_bytes: int = 0
    gpu: dict[str, Any] = Field(default_factory=dict)


class EgressDecision(StrEnum):
    """What the proxy did with a request; all but the first are refusals, or ended before anything was sent."""

    ALLOWED = "allowed"
    NOT_NAMED = "not_named"
    OTHER_PORT = "other_port"
    DIRECT_ADDRESS = "direct_address"
    PRIVATE_ADDRESS = "private_address"
    UNRESOLVABLE = "unresolvable"
    UNREACHABLE = "unreachable"
    NOT_TLS = "not_tls"
    OTHER_NAME = "other_name"
    MALFORMED = "malformed"
    LIMIT = "limit"


class EgressRequest(Model):
    """`count` requests of a stage for one destination with one outcome, and the bytes passed on for them.

    `host` is empty where the request named none. Bytes count what the tunnel carried, TLS included.
    """

    host: str
    port: int
    decision: EgressDecision
    count: int = 1
    sent_bytes: int = 0
    received_bytes: int = 0


class EgressReport(Model):
    """Every request that a stage made of its proxy; `omitted` counts those of further destinations than are listed."""

    requests: tuple[EgressRequest, ...] = ()
    omitted: int = 0

    def refused(self) -> tuple[EgressRequest, ...]:
        """Those that were not passed on."""
        return tuple(row for row in self.requests if row.decision is not EgressDecision.ALLOWED)


class Finding(Model):
    """A remark of an integrity or containment check; `code` is stable, `detail` one sentence."""

    code: str
    detail: str


class ChangedPath(Model):
    """One path that a run changed in its workspace. `kind` is the kind of what stands there now."""

    path: str
    change: Literal["added", "modified", "deleted", "replaced"]
    kind: Literal["file", "directory", "symlink", "other", "nothing"]
    size: int = 0


class ChangeSet(Model):
    """What a run did to its workspace, read from the overlay's upper layer alone.

    `truncated`: not every addition is listed; `incomplete`: the scan stopped early, and changes may be missing.
    """

    paths: tuple[ChangedPath, ...] = ()
    refused: tuple[str, ...] = ()
    truncated: bool = False
    incomplete: bool = False
    bytes: int = 0


class Patch(Model):
    """A candidate's difference to its base: hash of the unified diff, and its size."""

    sha256: str
    files: tuple[str, ...]
    insertions: int
    deletions: int


class ImageRef(Model):
    """An image by the name the user knows and the digest that runs."""

    name: str
    digest: str


class Guarantee(StrEnum):
    """How far an engine keeps one promise: always, as far as it can see, or not at all."""

    ENFORCED = "enforced"
    BEST_EFFORT = "best effort"
    NOT_OFFERED = "not offered"


class Guarantees(Model):
    """What an engine promises on this machine, as its contract tests hold it to.

    `memory`, `pids`, `cpus`: the limits bind the whole process tree, kernel memory included; `disk`: bytes
    and inodes of the workspace; `deadline_without_controller`: a sandbox ends on time, or at once, when
    its controller is dead; `own_uid`: no other sandbox runs with the same user id; `image`: the sandbox
    sees the image's files and none of the host's; `egress`: a stage reaches the hosts that its policy names,
    and nothing else (records of versions without it never had a network).
    """

    memory: Guarantee = Guarantee.ENFORCED
    pids: Guarantee = Guarantee.ENFORCED
    cpus: Guarantee = Guarantee.ENFORCED
    disk: Guarantee = Guarantee.ENFORCED
    deadline_without_controller: Guarantee = Guarantee.ENFORCED
    own_uid: Guarantee = Guarantee.ENFORCED
    image: Guarantee = Guarantee.ENFORCED
    egress: Guarantee = Guarantee.NOT_OFFERED

    def weak(self) -> dict[str, Guarantee]:
        """The promises that are not always kept."""
        return {name: kept for name, kept in self if kept is not Guarantee.ENFORCED}


class EngineInfo(Model):
    """The engine that ran a sandbox, and what its isolation consists of.

    `isolation` is one of policies.model.ISOLATION for an engine of ours; `guarantees` is None in records
    of versions that did not declare them.
    """

    name: str
    version: str
    runtime: str
    isolation: str
    privilege: Literal["root", "socket", "user"]
    guarantees: Guarantees | None = None


def utc_now() -> str:
    """The current time as RFC 3339 in UTC with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

"""The limits and permissions that one sandbox runs under: closed, frozen, each field with its way to meet.

A policy says *at most*: what a field allows is given only where a stage asks for it.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

import rfc8785
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from arsandbox.policies.rules import EVERYTHING, Directories, Hosts, Least, Names, Tighter, Union
from arsandbox.sandbox.caches.kinds import KINDS
from arsandbox.sandbox.errors import UsageError
from arsandbox.sandbox.quantities import parse_duration, parse_size

MIB = 1024**2
GIB = 1024**3
Isolation = Literal["namespaces", "container", "gvisor"]
# Weakest first: the kernel's namespaces alone, a container engine's, a kernel of the sandbox's own.
ISOLATION: tuple[Isolation, ...] = ("namespaces", "container", "gvisor")
Promise = Literal["memory", "pids", "cpus", "disk", "deadline_without_controller", "own_uid", "image", "egress"]
Network = Literal["none", "allowlist"]
Trust = Literal["L0", "L1", "L2", "L3", "L4"]
StageName = Literal["prepare", "train", "evaluate", "propose", "model", "score"]
LARGEST = 2**53 - 1  # the largest integer that canonical JSON can hold
# Set by arsandbox, or read by the loader and the GPU's runtime before any code of ours: never to be passed.
RESERVED = re.compile(r"(ARSANDBOX_|LD_|NVIDIA_)")
_HOST = re.compile(
    r"(?:\[[0-9a-f:]{2,39}\]|(?=.{1,253}:)[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
    r"(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)*):([1-9][0-9]{0,4})"
)


def _size(value: object) -> object:
    return _quantity(parse_size, value) if isinstance(value, str) else value


def _seconds(value: object) -> object:
    return _quantity(parse_duration, value) if isinstance(value, str) else value


def _quantity(parse: Any, text: str) -> float:
    try:
        number: float = parse(text)
    except UsageError as error:
        raise ValueError(f"{error.message.partition(': ')[2]}; {error.hint}") from error
    return number


def _host(value: str) -> str:
    found = _HOST.fullmatch(value.lower())
    if value != EVERYTHING and (found is None or int(found[1]) > 65535):
        raise ValueError(f"{value!r} is not an exact host:port, like index.example:443 or [::1]:8080")
    return value.lower()


def _hosts(values: tuple[str, ...]) -> tuple[str, ...]:
    return (EVERYTHING,) if EVERYTHING in values else tuple(sorted({*values}))


def _name(value: str) -> str:
    if not re.fullmatch(r"(?:[A-Za-z_][A-Za-z0-9_]*)?\*?", value) or not value:
        raise ValueError(f"{value!r} is not a variable's name or a beginning of one, like HF_HOME or HF_*")
    if RESERVED.match(value):
        raise ValueError(f"{value} is reserved and can never pass")
    return value


def _cache_kind(value: str) -> str:
    if value not in (EVERYTHING, *KINDS):
        raise ValueError(f"{value!r} is no kind of cache: {', '.join(KINDS)}, or {EVERYTHING}")
    return value


def _directory(value: str) -> str:
    path = PurePosixPath(value)
    if not path.is_absolute() or ".." in path.parts or "\0" in value or str(path).startswith("//"):
        raise ValueError(f"{value!r} is not an absolute directory")
    return str(path)


def _groups(value: object) -> object:
    """`["a", "b"]` is one group of patterns; several sources make several groups, and a path must match each."""
    if isinstance(value, list | tuple) and value and all(isinstance(one, str) for one in value):
        return (tuple(value),)
    return value


def _sorted(values: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(sorted({*values}))


def _sorted_groups(values: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
    return _sorted(tuple(_sorted(group) for group in values))


Bytes = Annotated[int, BeforeValidator(_size), Least()]
Count = Annotated[int, Least()]
HostPorts = Annotated[tuple[Annotated[str, AfterValidator(_host)], ...], AfterValidator(_hosts), Hosts()]
Patterns = Annotated[tuple[str, ...], AfterValidator(_sorted), Union()]


class Limits(BaseModel):
    """Hard limits of one sandbox. Sizes are bytes, `cpus` is cores' worth of time per second, `wall_s` seconds.

    `vram_bytes` is of each granted GPU, watched and not capped: what goes beyond ends the sandbox.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpus: Annotated[float, Least()] = Field(default=4.0, ge=0.01, le=4096)
    memory_bytes: Bytes = Field(default=16 * GIB, ge=16 * MIB, le=LARGEST)
    pids: Count = Field(default=2048, ge=2, le=4_194_304)
    disk_bytes: Bytes = Field(default=2 * GIB, ge=MIB, le=LARGEST)
    disk_inodes: Count = Field(default=200_000, ge=16, le=LARGEST)
    tmp_bytes: Bytes = Field(default=256 * MIB, ge=MIB, le=LARGEST)
    shm_bytes: Bytes = Field(default=256 * MIB, ge=64 * 1024, le=LARGEST)
    output_bytes: Bytes = Field(default=16 * MIB, ge=1024, le=LARGEST)
    vram_bytes: Bytes = Field(default=LARGEST, ge=MIB, le=LARGEST)
    open_files: Count = Field(default=4096, ge=16, le=LARGEST)
    wall_s: Annotated[float, BeforeValidator(_seconds), Least()] = Field(default=86_400.0, gt=0, le=2_592_000)


class Policy(BaseModel):
    """What a stage's sandbox may do, and what a candidate must be to run and to be promoted.

    `hosts`: the exact host:port pairs that may be reached where `network` is `allowlist`; `private_hosts`:
    those of them that may resolve to private or link-local addresses. `gpus`: the most devices that may be
    granted. `environment`: the variables (exact, or a beginning and `*`) that the project may set.
    `mounts`: host directories from which the project may mount, read-only. `isolation` is the weakest
    that an engine may have; `enforced` names promises that it must always keep. `promote_trust`: the
    lowest trust level that may promote; `self_reported`: whether a number that the run itself printed may,
    on request. `editable`: groups of patterns, of each of which a changed path must match one; none, no restriction.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    limits: Limits = Limits()
    network: Annotated[Network, Tighter(("allowlist", "none"))] = "none"
    hosts: HostPorts = ()
    private_hosts: HostPorts = ()
    gpus: Count = Field(default=0, ge=0, le=4096)
    environment: Annotated[
        tuple[Annotated[str, AfterValidator(_name)], ...], AfterValidator(Names().normal), Names()
    ] = (EVERYTHING,)
    mounts: Annotated[
        tuple[Annotated[str, AfterValidator(_directory)], ...], AfterValidator(Directories().normal), Directories()
    ] = ()
    caches: Annotated[
        tuple[Annotated[str, AfterValidator(_cache_kind)], ...], AfterValidator(Names().normal), Names()
    ] = (EVERYTHING,)
    isolation: Annotated[Isolation, Tighter(ISOLATION)] = "namespaces"
    enforced: Annotated[tuple[Promise, ...], AfterValidator(_sorted), Union()] = ()
    promote_trust: Annotated[Trust, Tighter(("L0", "L1", "L2", "L3", "L4"))] = "L0"
    self_reported: Annotated[Literal["on-request", "never"], Tighter(("on-request", "never"))] = "on-request"
    editable: Annotated[
        tuple[tuple[str, ...], ...], BeforeValidator(_groups), AfterValidator(_sorted_groups), Union()
    ] = ()
    protected: Patterns = ()
    patch_bytes: Bytes = Field(default=4 * MIB, ge=1, le=LARGEST)
    patch_files: Count = Field(default=200, ge=1, le=LARGEST)
    artifact_bytes: Bytes = Field(default=4 * GIB, ge=1, le=LARGEST)
    artifact_files: Count = Field(default=10_000, ge=1, le=LARGEST)

    def sha256(self) -> str:
        """Hex digest of the policy's canonical JSON (RFC 8785)."""
        return hashlib.sha256(rfc8785.dumps(self.model_dump(mode="json"))).hexdigest()


class PolicyFile(Policy):
    """A policy file: what it says for every stage, and in `[stage.NAME]` what it says for one stage instead.

    What is not said (pydantic's `model_fields_set`) is left to the other sources.
    """

    stage: dict[StageName, Policy] = Field(default_factory=dict)

    def for_stage(self, stage: str) -> Policy:
        """What the file says for `stage`; unset fields stay unset."""
        said = self.model_dump(exclude_unset=True, exclude={"stage"})
        own = {name: policy for name, policy in self.stage.items() if name == stage}
        for policy in own.values():
            special = policy.model_dump(exclude_unset=True)
            limits = {**said.get("limits", {}), **special.get("limits", {})}
            said = {**said, **special, **({"limits": limits} if limits else {})}
        return Policy.model_validate(said)

"""The limits and permissions that one sandbox runs under."""

from __future__ import annotations

import hashlib
from typing import Literal

import rfc8785
from pydantic import BaseModel, ConfigDict, Field

MIB = 1024**2
GIB = 1024**3
Isolation = Literal["namespaces", "container", "gvisor"]
# Weakest first: the kernel's namespaces alone, a container engine's, a kernel of the sandbox's own.
ISOLATION: tuple[Isolation, ...] = ("namespaces", "container", "gvisor")
Promise = Literal["memory", "pids", "cpus", "disk", "deadline_without_controller", "own_uid", "image"]
_LARGEST = 2**53 - 1  # the largest integer that canonical JSON can hold


class Limits(BaseModel):
    """Hard limits of one sandbox. Sizes are bytes, `cpus` is cores' worth of time per second."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpus: float = Field(default=4.0, ge=0.01, le=4096)
    memory_bytes: int = Field(default=16 * GIB, ge=16 * MIB, le=_LARGEST)
    pids: int = Field(default=2048, ge=2, le=4_194_304)
    disk_bytes: int = Field(default=2 * GIB, ge=MIB, le=_LARGEST)
    disk_inodes: int = Field(default=200_000, ge=16, le=_LARGEST)
    tmp_bytes: int = Field(default=256 * MIB, ge=MIB, le=_LARGEST)
    shm_bytes: int = Field(default=256 * MIB, ge=64 * 1024, le=_LARGEST)
    output_bytes: int = Field(default=16 * MIB, ge=1024, le=_LARGEST)
    open_files: int = Field(default=4096, ge=16, le=_LARGEST)


class Policy(BaseModel):
    """What a stage's sandbox may do: its limits, its network, and the edits a candidate may make.

    `isolation` is the weakest that an engine may have; `enforced` names promises that it must always keep.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    limits: Limits = Limits()
    network: Literal["none"] = "none"
    isolation: Isolation = "namespaces"
    enforced: tuple[Promise, ...] = ()
    patch_bytes: int = Field(default=4 * MIB, ge=1)
    patch_files: int = Field(default=200, ge=1)
    artifact_bytes: int = Field(default=4 * GIB, ge=1)
    artifact_files: int = Field(default=10_000, ge=1)

    def sha256(self) -> str:
        """Hex digest of the policy's canonical JSON (RFC 8785)."""
        return hashlib.sha256(rfc8785.dumps(self.model_dump(mode="json"))).hexdigest()

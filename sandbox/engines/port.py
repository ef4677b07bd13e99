"""What an engine must offer, split by role. Engines are found by the entry point `arsandbox.engines`.

An entry point names a callable without arguments that returns an `Engine` or raises MachineError
with the one command that helps. Nothing in a specification or an answer is specific to an engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, runtime_checkable

from arsandbox.policies.model import Limits
from arsandbox.sandbox.models import ChangeSet, EngineInfo, ImageRef, Model, Stage, Termination, Usage


class ReadOnlyMount(Model):
    """A directory of the host that the sandbox sees read-only at `target`."""

    source: Path
    target: str


class SandboxSpec(Model):
    """One sandbox: everything that the engine is asked for.

    `layers` are the read-only lower layers of the workspace, topmost first; `scratch` is an empty
    directory of ours for this sandbox alone; `deadline_s` counts from the start of the process;
    `cores` and `memory_nodes` pin it, in the kernel's list format, where they are not empty; `gpus` are the UUIDs
    of the devices that it sees, which the caller has leased (only where the engine is a `GpuOffer`).
    """

    experiment: str
    stage: Stage
    image: ImageRef
    command: tuple[str, ...]
    environment: dict[str, str]
    layers: tuple[Path, ...]
    mounts: tuple[ReadOnlyMount, ...] = ()
    limits: Limits
    deadline_s: float
    cores: str = ""
    memory_nodes: str = ""
    gpus: tuple[str, ...] = ()
    scratch: Path
    labels: dict[str, str]


class Outcome(Model):
    """How a sandbox ended and what it used; `start_s` is the engine's time until the process ran."""

    termination: Termination
    usage: Usage
    start_s: float
    wall_s: float


class Collected(Model):
    """Artifacts copied out of a workspace: path to SHA-256, and what was refused and why."""

    files: dict[str, str]
    refused: tuple[str, ...]


class EnoughError(Exception):
    """Raised by a watcher's `tick`: the sandbox is to end now. `run` ends it and returns, with reason `interrupted`."""


class Watcher(Protocol):
    """Receives what happens while a sandbox runs. Both calls must return quickly and raise nothing else."""

    def output(self, chunk: bytes) -> None:
        """Bytes that the sandbox wrote to standard output or error, in order, from a reader thread."""

    def tick(self, elapsed_s: float, memory_bytes: int) -> None:
        """Called several times a second from the waiting thread. Raises EnoughError to end the sandbox."""


class Sandbox(Protocol):
    """A created sandbox. Leaving its context ends and removes everything of it, whatever happened."""

    def run(self, watcher: Watcher) -> Outcome:
        """Start the command and block until every process of the sandbox is gone.

        Ends it at the deadline or a limit. On KeyboardInterrupt the sandbox is ended first, then the
        exception goes on. Call once. Raises MachineError when the engine fails.
        """

    def changes(self) -> ChangeSet:
        """What the run did to its workspace. Call after `run`; bounded in time and memory."""

    def collect(self, paths: Sequence[str], target: Path, *, most_bytes: int, most_files: int) -> Collected:
        """Copy the regular files at or below `paths` into the empty directory `target`. After `run`."""


class SandboxRunner(Protocol):
    """Runs sandboxes."""

    def sandbox(self, spec: SandboxSpec) -> AbstractContextManager[Sandbox]:
        """Create a sandbox. Everything it makes bears the spec's labels before it is started."""


class ImageHolder(Protocol):
    """Keeps the images that sandboxes run."""

    def find_image(self, name: str) -> ImageRef | None:
        """What every `name` means on an engine that brings its own base; None where images are pinned."""

    def has_image(self, digest: str) -> bool:
        """Whether the image with that digest can be run. Idempotent. Raises MachineError."""

    def load_image(self, archive: Iterable[bytes]) -> str:
        """Load a docker-archive and return the digest that the engine gives it. Raises MachineError."""


class Sweeper(Protocol):
    """Finds what dead controllers left."""

    def sweep(self, labels: dict[str, str]) -> list[str]:
        """Remove all that bears every one of `labels`; returns what was removed. Idempotent."""

    def labelled(self, label: str) -> set[str]:
        """The values that `label` has on anything the engine holds. Idempotent."""


class Prober(Protocol):
    """Says what the engine is."""

    def info(self) -> EngineInfo:
        """Name, version, runtime and isolation. Idempotent. Raises MachineError."""


@runtime_checkable
class RuntimeChooser(Protocol):
    """An engine whose sandboxes can run under several runtimes. Optional."""

    def with_runtime(self, name: str) -> Engine:
        """The same engine with another runtime. Raises MachineError where it does not have it."""


class EngineFacts(Model):
    """What `arsandbox doctor` says of an engine. `lacks`: of memory, swap, pids, cpu, what it cannot limit here.

    `cdi_directories`: where it looks for device specifications; empty where it knows none.
    """

    runtimes: tuple[str, ...]
    seccomp: bool
    lacks: tuple[str, ...] = ()
    cdi_directories: tuple[str, ...] = ()
    data_directory: str = ""


@runtime_checkable
class Described(Protocol):
    """An engine that can say more of itself. Optional."""

    def facts(self) -> EngineFacts:
        """Asked of the engine now. Idempotent. Raises MachineError."""


@runtime_checkable
class GpuOffer(Protocol):
    """An engine whose sandboxes can be given GPUs. Optional."""

    def offer_gpus(self, image: ImageRef, uuids: Sequence[str], *, labels: Mapping[str, str]) -> str:
        """By which way a sandbox of `image` gets exactly these devices; tried, in one that bears `labels`.

        Raises MachineError with what is missing and the one command that helps.
        """


class ImageFacts(Model):
    """What an engine says of an image: its ID, processor and system, bytes, and the volumes that it declares."""

    digest: str
    architecture: str
    system: str
    size_bytes: int
    volumes: tuple[str, ...] = ()


@runtime_checkable
class ImageExchanger(Protocol):
    """An engine that can pull images, build on them and give them out. Optional."""

    def pull_image(self, reference: str) -> ImageFacts:
        """Pull "REPOSITORY@sha256:HEX". Tried again a bounded number of times. Raises MachineError, RefusedError."""

    def export_image(self, digest: str) -> Iterator[bytes]:
        """The image as a docker-archive, read out anew. Raises MachineError, RefusedError where it is damaged."""

    def derive_image(self, context: Path, arguments: dict[str, str]) -> ImageFacts:
        """Build the Dockerfile in the folder `context` with those arguments and no network. Raises MachineError."""


class Engine(SandboxRunner, ImageHolder, Sweeper, Prober, Protocol):
    """All roles together."""

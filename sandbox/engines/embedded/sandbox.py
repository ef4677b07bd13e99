"""One embedded sandbox from creation to removal: start, watch, end by evidence, clean up."""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from arsandbox.policies.seccomp import bpf_program
from arsandbox.sandbox.engines import init
from arsandbox.sandbox.engines.cgroup import Cgroup, Readings
from arsandbox.sandbox.engines.embedded import arguments, program
from arsandbox.sandbox.engines.embedded.cgroups import BoxCgroup
from arsandbox.sandbox.engines.embedded.environment import PythonEnvironment, current
from arsandbox.sandbox.engines.embedded.leftovers import Leftover, still_there
from arsandbox.sandbox.engines.embedded.output import PipeReader
from arsandbox.sandbox.engines.embedded.polling import NamespacePoll
from arsandbox.sandbox.engines.embedded.process import Box, Descriptors
from arsandbox.sandbox.engines.embedded.workspace import CopyWorkspace, OverlayWorkspace, Workspace
from arsandbox.sandbox.engines.port import Collected, EnoughError, Outcome, SandboxSpec, Watcher
from arsandbox.sandbox.engines.termination import Evidence, terminate
from arsandbox.sandbox.engines.uids import Uid
from arsandbox.sandbox.errors import MachineError
from arsandbox.sandbox.models import ChangeSet, Usage
from arsandbox.sandbox.workspace.overlay import space_of

_POLL_S = 0.02
_PROC_POLL_S = 0.1  # counting processes from /proc costs milliseconds
_TICK_S = 0.1
_UNCOUNTED = ("memfd_create", "memfd_secret")
# The host's clock decides; process 1 ends the sandbox this much later where the controller hangs.
_INSIDE_MARGIN_S = 1.0


class EmbeddedSandbox:
    """Context manager over one bubblewrap, its workspace, its cgroup and its uid."""

    def __init__(self, spec: SandboxSpec) -> None:
        self._spec = spec
        self._uid = Uid.take()
        self._root = os.geteuid() == 0
        self._workspace: Workspace = OverlayWorkspace(spec, self._uid.number) if self._root else CopyWorkspace(spec)
        self._leftover: Leftover | None = None
        self._cgroup: BoxCgroup | None = None
        self._sources: list[Path] = []
        self._mount: list[str] = []
        self._box: Box | None = None
        self._full: set[str] = set()
        self._ran = False

    def __enter__(self) -> EmbeddedSandbox:
        try:
            name = f"{self._spec.stage.value}-{self._spec.experiment}-{os.urandom(3).hex()}"
            self._leftover = Leftover.announce(name, self._spec.labels)
            limits = self._spec.limits
            self._cgroup = BoxCgroup.create(name, limits, cores=self._spec.cores, memory_nodes=self._spec.memory_nodes)
            self._mount = self._workspace.create(self._seen)
        except BaseException:  # Ctrl-C too: what was made so far goes, then the exception goes on
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def run(self, watcher: Watcher) -> Outcome:
        """See the port."""
        began = time.monotonic()
        box = self._box = self._start()
        reader = PipeReader(box.output, watcher, self._spec.limits.output_bytes)
        reader.start()
        cause: str | None = None
        meter: Cgroup | NamespacePoll | None = None
        started = began
        try:
            meter = self._admit(box)
            started = time.monotonic()
            if meter is not None:
                box.release()
                cause = self._watch(box, watcher, meter, reader, started)
        finally:
            if not box.ended(0):
                if meter is not None:
                    meter.kill()
                box.kill()
            readings = self._last_readings(meter)
            while not box.ended(60):
                box.kill()
            ended = time.monotonic()
            code = box.reap()
        reader.join(timeout=10)
        if reader.error is not None:
            raise MachineError(f"cannot read the sandbox's output: {reader.error}", hint="arsandbox doctor")
        if not box.reached_command:
            raise MachineError(f"bwrap could not make the sandbox: {_last_line(reader.last)}", hint="arsandbox doctor")
        if cause is None and reader.over:
            cause = "output"
        if cause is None and ended - started >= self._spec.deadline_s:
            cause = "timeout"
        return self._outcome(cause, code, readings, reader, box, began=began, started=started, ended=ended)

    def changes(self) -> ChangeSet:
        """See the port."""
        return self._workspace.changes()

    def collect(self, paths: Sequence[str], target: Path, *, most_bytes: int, most_files: int) -> Collected:
        """See the port."""
        return self._workspace.collect(paths, target, most_bytes=most_bytes, most_files=most_files)

    # ---- start ----

    def _seen(self, path: Path) -> str:
        """The path by which bwrap reaches `path`: an unprivileged uid cannot walk root's directories."""
        if not self._root:
            return str(path)
        if path not in self._sources:
            self._sources.append(path)
        return f"{launcher_stage()}/{self._sources.index(path)}"

    def _start(self) -> Box:
        spec, uid, python = self._spec, self._uid.number, current()
        descriptors = Descriptors()
        try:
            options = [
                *arguments.isolation(uid),
                *arguments.root(spec, python, uid, seen=self._seen, data=lambda text: descriptors.data(text.encode())),
                *self._mount,
                *arguments.closing(spec, self._seen),
                *arguments.set_variables(arguments.environment(spec, python, uid)),
                # Memory that no process maps is counted by a cgroup alone.
                *("--seccomp", str(descriptors.data(bpf_program(without=() if self._cgroup else _UNCOUNTED)))),
            ]
            bwrap = self._program(python)
            return Box(
                bwrap,
                options,
                self._command(python),
                descriptors=descriptors,
                sources=self._sources,
                uid=uid if self._root else None,
                limits=self._resource_limits(),
            )
        finally:
            descriptors.close()

    def _program(self, python: PythonEnvironment) -> str:
        path = Path(program.find().path)
        for packages in python.packages:
            if self._root and path.is_relative_to(packages):
                return f"{self._seen(packages)}/{path.relative_to(packages)}"
        return str(path)

    def _command(self, python: PythonEnvironment) -> list[str]:
        deadline = f"{self._spec.deadline_s + _INSIDE_MARGIN_S:.3f}"
        return [str(python.interpreter), "-I", "-S", "-c", inspect.getsource(init), deadline, *self._spec.command]

    def _resource_limits(self) -> dict[str, int]:
        limits = self._spec.limits
        found = {"RLIMIT_CORE": 0, "RLIMIT_NOFILE": limits.open_files, "RLIMIT_MEMLOCK": 64 * 1024}
        if self._cgroup is None:
            found["RLIMIT_DATA"] = limits.memory_bytes
        return found

    def _admit(self, box: Box) -> Cgroup | NamespacePoll | None:
        """Put process 1 under its limits while it waits; None when bwrap failed before it existed."""
        if not box.wait_for_first():
            return None
        meter: Cgroup | NamespacePoll | None = None
        try:
            if self._cgroup is not None:
                self._cgroup.add(box.pid)
                meter = Cgroup(box.pid)
            else:
                import resource

                # Counted per user namespace since Linux 5.14, so it must be set on a process in the sandbox's own.
                resource.prlimit(box.pid, resource.RLIMIT_NPROC, (self._spec.limits.pids, self._spec.limits.pids))
                if self._spec.cores:
                    os.sched_setaffinity(box.pid, _cores(self._spec.cores))
                meter = NamespacePoll(box.pid)
            self._workspace.fill(box.pid)
        except (ProcessLookupError, FileNotFoundError):
            self._last_readings(meter)
            return None  # bwrap failed while it was setting up: run() says what it said
        except OSError as error:
            self._last_readings(meter)
            raise MachineError(f"cannot set the sandbox up: {error}", hint="arsandbox doctor") from error
        return meter

    # ---- watch ----

    def _watch(
        self, box: Box, watcher: Watcher, meter: Cgroup | NamespacePoll, reader: PipeReader, started: float
    ) -> str | None:
        """Wait for the end; returns why we must end it ourselves, or None when it exited."""
        deadline = started + self._spec.deadline_s
        poll = _POLL_S if isinstance(meter, Cgroup) else _PROC_POLL_S
        next_tick = started
        while True:
            now = time.monotonic()
            if now >= deadline:
                return "timeout"
            if reader.over:
                return "output"
            readings = meter.read()
            if readings.oom_kills or (self._cgroup is None and readings.memory_bytes > self._spec.limits.memory_bytes):
                return "oom"
            self._look_for_full_disks(box)
            if now >= next_tick:
                next_tick = now + _TICK_S
                try:
                    watcher.tick(now - started, readings.memory_bytes)
                except EnoughError:
                    return "enough"
            if box.ended(min(poll, max(0.0, deadline - now))):
                return None

    def _look_for_full_disks(self, box: Box) -> None:
        try:
            if self._workspace.space().full:
                self._full.add("the workspace")
            for name in ("/tmp", "/dev/shm"):  # noqa: S108 - inside the sandbox
                if space_of(f"/proc/{box.pid}/root{name}").full:
                    self._full.add(name)
        except OSError:
            return  # just gone

    @staticmethod
    def _last_readings(meter: Cgroup | NamespacePoll | None) -> Readings:
        if meter is None:
            return Readings()
        if isinstance(meter, Cgroup):
            readings = meter.read()
            meter.close()
            return readings
        return meter.readings

    def _outcome(
        self, cause: str | None, code: int, readings: Readings, reader: PipeReader, box: Box,
        *, began: float, started: float, ended: float,
    ) -> Outcome:  # fmt: skip
        space = self._workspace.space()
        if space.full:
            self._full.add("the workspace")
        evidence = Evidence(
            cause=cause,
            exit_code=code,
            oom_killed=cause == "oom" or readings.oom_kills > 0,
            pids_refused=readings.pids_refused,
            full=tuple(sorted(self._full)),
        )
        usage = Usage(
            cpu_s=round(readings.cpu_s or box.usage_s, 3),
            peak_memory_bytes=readings.peak_memory_bytes,
            peak_pids=readings.peak_pids,
            disk_bytes=space.used_bytes,
            output_bytes=reader.total,
        )
        return Outcome(
            termination=terminate(evidence, self._spec.limits, self._spec.deadline_s),
            usage=usage,
            start_s=started - began,
            wall_s=ended - started,
        )

    def _remove(self) -> None:
        """Remove processes, cgroup, workspace and uid, in that order; every step is safe to repeat.

        Raises NotRemovedError where the cgroup stays: it stays announced, so that the next sweep finds it.
        """
        try:
            if self._box is not None:
                self._box.close()
            if self._leftover is not None:
                if self._cgroup is not None and not self._cgroup.remove():
                    raise still_there(self._leftover.name)
                self._leftover.forget()
        finally:
            try:
                self._workspace.remove()
            finally:
                self._uid.release()


def launcher_stage() -> str:
    """Where the launcher binds what bwrap mounts."""
    from arsandbox.sandbox.engines.embedded.launcher import STAGE

    return STAGE


def _cores(listing: str) -> set[int]:
    found: set[int] = set()
    for part in listing.split(","):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def _last_line(text: bytes) -> str:
    lines = text.decode("utf-8", "replace").strip().splitlines()
    return "".join(c for c in lines[-1] if c.isprintable())[:300] if lines else "it said nothing"

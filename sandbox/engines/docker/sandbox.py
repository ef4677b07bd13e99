"""One Docker sandbox from creation to removal: start, watch, end by evidence, clean up."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import docker

from arsandbox.sandbox.engines.cgroup import Cgroup, Readings
from arsandbox.sandbox.engines.docker import container
from arsandbox.sandbox.engines.docker.client import NotFound, idempotent, translated
from arsandbox.sandbox.engines.docker.helper import HelperWorkspace
from arsandbox.sandbox.engines.docker.output import OutputReader
from arsandbox.sandbox.engines.host_workspace import HostWorkspace
from arsandbox.sandbox.engines.port import Collected, EnoughError, Outcome, SandboxSpec, Watcher
from arsandbox.sandbox.engines.termination import Evidence, terminate
from arsandbox.sandbox.engines.uids import Uid
from arsandbox.sandbox.errors import MachineError, NotRemovedError
from arsandbox.sandbox.models import ChangeSet, Usage
from arsandbox.sandbox.workspace.overlay import space_of

_POLL_S = 0.02
_TICK_S = 0.1
# The engine says within this time that a container's last process is gone, unless its output is stuck.
_REPORTED_S = 2.0
_NOT_EXECUTED = (126, 127)


class DockerSandbox:
    """Context manager over one container, its workspace volume, its quota and its uid."""

    def __init__(self, client: docker.DockerClient, spec: SandboxSpec, runtime: str, gpu_way: str = "") -> None:
        self._client, self._spec, self._runtime, self._gpu_way = client, spec, runtime, gpu_way
        self._name = f"arsandbox-{spec.experiment}-{spec.stage.value}-{os.urandom(3).hex()}"
        self._container = ""
        self._pid = 0
        self._uid = Uid.take()
        self._workspace: HostWorkspace | HelperWorkspace
        if os.geteuid() == 0:
            self._workspace = HostWorkspace(spec.scratch, spec.layers, spec.limits, self._uid.number)
        else:
            self._workspace = HelperWorkspace(client, spec, self._name, self._uid.number)
        self._reader: OutputReader | None = None
        self._full: set[str] = set()

    def __enter__(self) -> DockerSandbox:
        try:
            options = self._workspace.create()
            with translated("create the workspace volume"):
                self._client.api.create_volume(
                    self._name, driver="local", driver_opts=options, labels=self._spec.labels
                )
            with translated("create the sandbox"):
                self._container = container.create(
                    self._client.api,
                    self._spec,
                    name=self._name,
                    volume=self._name,
                    uid=self._uid.number,
                    runtime=self._runtime,
                    gpu_way=self._gpu_way,
                )
        except NotFound as error:
            self._remove()
            raise MachineError(
                f"image {self._spec.image.name} ({self._spec.image.digest[:19]}) is not in the engine",
                hint=f"arsandbox image build {self._spec.image.name}",
            ) from error
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
        identity, api, limits = self._container, self._client.api, self._spec.limits
        began = time.monotonic()
        with translated("start the sandbox"):
            connection = api.attach_socket(identity, params={"stdout": 1, "stderr": 1, "stream": 1, "logs": 0})
            self._reader = OutputReader(connection, watcher, limits.output_bytes)
            self._reader.start()
        waiter = threading.Thread(target=self._wait, name="sandbox-wait", daemon=True)
        try:
            with translated("start the sandbox"):
                api.start(identity)
        except MachineError:
            if self._state().get("ExitCode") not in _NOT_EXECUTED:
                raise  # else the command is not there or not executable: the candidate's failure, not ours
            started = time.monotonic()
        else:
            started = time.monotonic()
            waiter.start()
        cgroup = self._cgroup()
        cause: str | None = None
        try:
            cause = self._watch(watcher, cgroup, waiter, started)
        finally:
            if waiter.is_alive():
                self._kill(cgroup, waiter)
            ended = time.monotonic()
            readings = cgroup.read() if cgroup else Readings()
            if cgroup:
                cgroup.close()
        self._reader.join(timeout=10)
        if self._reader.error is not None:
            raise MachineError(f"cannot read the sandbox's output: {self._reader.error}", hint="arsandbox doctor")
        if cause is None and self._reader.over:
            cause = "output"
        if cause is None and ended - started >= self._spec.deadline_s:
            cause = "timeout"  # process 1 was faster than we were
        state = self._state()
        space = self._workspace.space()
        if space is not None and space.full:
            self._full.add("the workspace")
        evidence = Evidence(
            cause=cause,
            exit_code=state.get("ExitCode"),
            oom_killed=bool(state.get("OOMKilled")) or readings.oom_kills > 0,
            pids_refused=readings.pids_refused,
            full=tuple(sorted(self._full)),
            engine_error=str(state.get("Error") or ""),
        )
        usage = Usage(
            cpu_s=round(readings.cpu_s, 3),
            peak_memory_bytes=readings.peak_memory_bytes,
            peak_pids=readings.peak_pids,
            disk_bytes=space.used_bytes if space is not None else 0,
            output_bytes=self._reader.total,
        )
        return Outcome(
            termination=terminate(evidence, limits, self._spec.deadline_s),
            usage=usage,
            start_s=started - began,
            wall_s=ended - started,
        )

    def changes(self) -> ChangeSet:
        """See the port."""
        return self._workspace.changes()

    def collect(self, paths: Sequence[str], target: Path, *, most_bytes: int, most_files: int) -> Collected:
        """See the port."""
        return self._workspace.collect(paths, target, most_bytes=most_bytes, most_files=most_files)

    def _watch(self, watcher: Watcher, cgroup: Cgroup | None, waiter: threading.Thread, started: float) -> str | None:
        """Wait for the end; returns why we must end it ourselves, or None when it exited."""
        assert self._reader is not None  # noqa: S101
        deadline = started + self._spec.deadline_s
        next_tick = started
        while True:
            now = time.monotonic()
            if now >= deadline:
                return "timeout"
            if self._reader.over:
                return "output"
            readings = cgroup.read() if cgroup else Readings()
            if readings.oom_kills:
                return "oom"
            self._look_for_full_disks()
            if now >= next_tick:
                next_tick = now + _TICK_S
                try:
                    watcher.tick(now - started, readings.memory_bytes)
                except EnoughError:
                    return "enough"
            if _ended(waiter, min(_POLL_S, deadline - now)):
                return None

    def _look_for_full_disks(self) -> None:
        space = self._workspace.watched_space()
        if space is not None and space.full:
            self._full.add("the workspace")
        for name in ("/tmp", "/dev/shm"):  # noqa: S108 - inside the sandbox
            try:
                if self._pid and space_of(f"/proc/{self._pid}/root{name}").full:
                    self._full.add(name)
            except OSError:
                continue  # not root, or just gone

    def _cgroup(self) -> Cgroup | None:
        """The container's cgroup, or None when it is already gone or another host's."""
        self._pid = int(self._state().get("Pid") or 0)
        if not self._pid:
            return None
        try:
            return Cgroup(self._pid)
        except OSError:
            return None

    def _state(self) -> dict[str, Any]:
        with translated("inspect the sandbox"):
            state: dict[str, Any] = _inspect(self._client.api, self._container)["State"]
            return state

    def _wait(self) -> None:
        """Return once the engine says that it ended; a broken connection is asked again until it does."""
        while True:
            try:
                self._client.api.wait(self._container, timeout=3600)
                return
            except NotFound:
                return
            except Exception:  # noqa: BLE001 - time-outs and restarts of the engine alike
                time.sleep(0.2)
                if not self._running():
                    return

    def _running(self) -> bool:
        try:
            return bool(self._state().get("Running"))
        except (NotFound, MachineError):
            return False

    def _kill(self, cgroup: Cgroup | None, waiter: threading.Thread) -> None:
        """End every process: through the cgroup where we may, else by the engine, again and again."""
        if cgroup is not None and os.geteuid() == 0:
            self._unpause()  # a frozen process takes no signal
            cgroup.kill()
            if _ended(waiter, _REPORTED_S):
                return
            self._hang_up()
            if _ended(waiter, 5):
                return
        end = time.monotonic() + 60
        while waiter.is_alive() and time.monotonic() < end:
            try:
                self._unpause()
                with translated("end the sandbox"):
                    self._client.api.kill(self._container, signal="KILL")
            except (NotFound, MachineError):
                pass  # gone, or not running any more, or a fork bomb keeps the engine busy: look again
            if not _ended(waiter, 0.5):
                self._hang_up()
        if waiter.is_alive():
            raise MachineError("the engine did not end the sandbox within a minute", hint="arsandbox gc")

    def _hang_up(self) -> None:
        if self._reader is not None:
            self._reader.shut()

    def _unpause(self) -> None:
        """Thaw a container that somebody paused. Raises nothing: whether it ended is looked at next."""
        try:
            if self._state().get("Paused"):
                with translated("unpause the sandbox"):
                    self._client.api.unpause(self._container)
        except (NotFound, MachineError):
            return

    def _remove(self) -> None:
        """Remove container, volume, quota and uid, in that order; every step is safe to repeat.

        Raises NotRemovedError where the engine may still hold some of it.
        """
        try:
            # By name: an interruption may have fallen between the creation and its answer.
            _remove_container(self._client.api, self._name)
            if self._reader is not None:
                self._reader.close()
            _remove_volume(self._client.api, self._name)
        except MachineError as error:
            raise NotRemovedError(error.message, hint=error.hint) from error
        finally:
            self._workspace.remove()
            self._uid.release()


def _ended(waiter: threading.Thread, within_s: float) -> bool:
    """Whether it does within so many seconds.

    Unlike the wait for an event, Ctrl-C can end that for a join at any point and leave no lock taken.
    """
    if waiter.is_alive():
        waiter.join(max(0.0, within_s))
    return not waiter.is_alive()


@idempotent
def _inspect(api: docker.APIClient, identity: str) -> dict[str, Any]:
    found: dict[str, Any] = api.inspect_container(identity)
    return found


@idempotent
def _remove_container(api: docker.APIClient, identity: str) -> None:
    try:
        with translated("remove the sandbox"):
            api.remove_container(identity, force=True, v=True)
    except NotFound:
        return


@idempotent
def _remove_volume(api: docker.APIClient, name: str) -> None:
    try:
        with translated("remove the workspace volume"):
            api.remove_volume(name, force=True)
    except NotFound:
        return

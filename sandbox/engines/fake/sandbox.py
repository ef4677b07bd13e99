"""One sandbox of the fake engine: a real upper layer on disk, written by the script instead of a process."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Protocol

from arsandbox.sandbox.engines.fake.script import Faults, Play, Script
from arsandbox.sandbox.engines.port import Collected, EnoughError, Outcome, SandboxSpec, Watcher
from arsandbox.sandbox.engines.termination import Evidence, terminate
from arsandbox.sandbox.models import ChangeSet, Usage
from arsandbox.sandbox.workspace import upper as reading


class Holder(Protocol):
    """Keeps the sandboxes that are open."""

    def hold(self, sandbox: FakeSandbox) -> None:
        """From `__enter__` on."""

    def drop(self, sandbox: FakeSandbox) -> None:
        """At `__exit__`, or by a sweep."""


class FakeSandbox:
    """See the port; `spec` is what was asked for."""

    def __init__(self, spec: SandboxSpec, play: Play, faults: Faults, holder: Holder) -> None:
        self.spec = spec
        self._play, self._faults, self._holder = play, faults, holder
        self._upper = spec.scratch / "upper"

    def __enter__(self) -> FakeSandbox:
        number = self._faults.before("enter")
        self._upper.mkdir()
        self._holder.hold(self)
        try:
            self._faults.after("enter", number)
        except BaseException:  # a scripted Ctrl-C too: what was made goes, then the exception goes on
            self.remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        number = self._faults.before("exit")
        self.remove()
        self._faults.after("exit", number)

    def run(self, watcher: Watcher) -> Outcome:
        """See the port. No time passes: a tick at the start, the output, a tick at the end."""
        number = self._faults.before("run")
        script = self._play(self.spec)
        limits, wall_s = self.spec.limits, min(script.seconds, self.spec.deadline_s)
        enough = _tick(watcher, 0.0, 0)
        if shown := script.output[: limits.output_bytes]:
            watcher.output(shown)
        disk_bytes = self._write(script)
        memory_bytes = min(script.memory_bytes, limits.memory_bytes)
        enough = _tick(watcher, wall_s, memory_bytes) or enough
        evidence = self._evidence(script, disk_bytes)
        if enough and evidence.cause is None:
            evidence = replace(evidence, cause="enough")
        ended = script.termination or terminate(evidence, limits, self.spec.deadline_s)
        outcome = Outcome(
            termination=ended,
            usage=Usage(
                cpu_s=script.cpu_s,
                peak_memory_bytes=memory_bytes,
                peak_pids=min(script.pids, limits.pids),
                disk_bytes=min(disk_bytes, limits.disk_bytes),
                output_bytes=len(script.output),
            ),
            start_s=0.0,
            wall_s=wall_s,
        )
        self._faults.after("run", number)
        return outcome

    def changes(self) -> ChangeSet:
        """See the port."""
        number = self._faults.before("changes")
        lowers = [str(layer) for layer in self.spec.layers]
        found = ChangeSet.model_validate(reading.Scan(str(self._upper), lowers).result())
        self._faults.after("changes", number)
        return found

    def collect(self, paths: Sequence[str], target: Path, *, most_bytes: int, most_files: int) -> Collected:
        """See the port."""
        number = self._faults.before("collect")
        collector = reading.Collector(str(self._upper), str(target), most_bytes, most_files)
        for path in paths:
            collector.collect(path)
        self._faults.after("collect", number)
        return Collected(files=collector.files, refused=tuple(collector.refused))

    def remove(self) -> None:
        """Forget it and remove its upper layer; safe to repeat."""
        self._holder.drop(self)
        reading.remove_tree(str(self.spec.scratch))

    def _evidence(self, script: Script, disk_bytes: int) -> Evidence:
        limits = self.spec.limits
        over = len(script.output) > limits.output_bytes
        late = script.seconds >= self.spec.deadline_s
        exceeded = script.pids > limits.pids or disk_bytes > limits.disk_bytes
        return Evidence(
            cause="output" if over else "timeout" if late else None,
            exit_code=script.exit_code or (1 if exceeded else 0),
            oom_killed=script.memory_bytes > limits.memory_bytes,
            pids_refused=max(0, script.pids - limits.pids),
            full=("the workspace",) if disk_bytes > limits.disk_bytes else (),
        )

    def _write(self, script: Script) -> int:
        """Write the script's files, as far as there is room, and whiteouts for what it deletes; returns the bytes."""
        room = self.spec.limits.disk_bytes
        for name, content in script.files.items():
            file = self._upper / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content[: max(0, room)])
            room -= len(content)
        for name in script.deleted:
            place = self._upper / name
            place.parent.mkdir(parents=True, exist_ok=True)
            os.mknod(place, stat.S_IFCHR, os.makedev(0, 0))  # a whiteout (overlayfs.rst); needs no privilege
        return sum(len(content) for content in script.files.values())


def _tick(watcher: Watcher, elapsed_s: float, memory_bytes: int) -> bool:
    """Whether the watcher has enough."""
    try:
        watcher.tick(elapsed_s, memory_bytes)
    except EnoughError:
        return True
    return False

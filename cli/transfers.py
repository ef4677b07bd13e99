"""Bytes on their way: bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from arsandbox.cli.render import plain
from arsandbox.sandbox.quantities import format_size

_QUIET_S = 10.0


class Transfers:
    """A context in which `arrived` shows how far each file is; nothing is shown once it is left."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._console = console
        self._progress: Progress | None = None
        if console.is_terminal and not quiet:
            columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
            self._progress = Progress(*columns, console=console, transient=True)
        self._tasks: dict[str, TaskID] = {}
        self._name, self._said = "", 0.0

    def __enter__(self) -> Transfers:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def arrived(self, name: str, done: int, total: int) -> None:
        """`done` of `total` bytes of `name` are here (a total of 0: not known)."""
        if self._progress is None:
            if name != self._name:
                self._name, self._said = name, time.monotonic()
            if time.monotonic() - self._said >= _QUIET_S:
                self._said = time.monotonic()
                of = f" of {format_size(total)}" if total else ""
                self._console.print(plain(f"{name}: {format_size(done)}{of}"), soft_wrap=True)
            return
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(plain(name), total=total or None)
        self._progress.update(self._tasks[name], completed=done, visible=not total or done < total)

"""A listener through which the main thread ends what a worker runs, as Ctrl-C would in a single thread."""

from __future__ import annotations

from collections.abc import Callable

from arsandbox.sandbox.events import Listener
from arsandbox.sandbox.models import Stage
from arsandbox.sandbox.record import Record


class Interruptible:
    """Passes everything on; once `now` says so, the next progress of a stage raises KeyboardInterrupt."""

    def __init__(self, inner: Listener, now: Callable[[], bool]) -> None:
        self._inner, self._now = inner, now

    def stop(self) -> None:
        """Raise KeyboardInterrupt if everything is to end now."""
        if self._now():
            raise KeyboardInterrupt

    def note(self, text: str) -> None:
        """Pass on."""
        self._inner.note(text)

    def stage_started(self, stage: Stage, limit_s: float) -> None:
        """Pass on, or end."""
        self.stop()
        self._inner.stage_started(stage, limit_s)

    def progress(self, stage: Stage, elapsed_s: float, limit_s: float, memory_bytes: int, latest: float | None) -> None:
        """Pass on, or end."""
        self.stop()
        self._inner.progress(stage, elapsed_s, limit_s, memory_bytes, latest)

    def stage_ended(self, stage: Stage) -> None:
        """Pass on."""
        self._inner.stage_ended(stage)

    def finished(self, record: Record) -> None:
        """Pass on."""
        self._inner.finished(record)

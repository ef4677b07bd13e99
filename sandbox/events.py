"""What an experiment tells its listener while it goes on."""

from __future__ import annotations

from typing import Protocol

from arsandbox.sandbox.models import Stage
from arsandbox.sandbox.record import Record


class Listener(Protocol):
    """Receives progress; every call returns quickly and never raises."""

    def note(self, text: str) -> None:
        """One line that the user should see once."""

    def stage_started(self, stage: Stage, limit_s: float) -> None:
        """A stage's sandbox is about to start; it may take `limit_s` seconds."""

    def progress(self, stage: Stage, elapsed_s: float, limit_s: float, memory_bytes: int, latest: float | None) -> None:
        """Several times a second; `latest` is the self-reported metric, if any."""

    def stage_ended(self, stage: Stage) -> None:
        """The stage's sandbox is gone."""

    def finished(self, record: Record) -> None:
        """An experiment has its record."""


class Silent:
    """A listener that ignores everything."""

    def note(self, text: str) -> None:
        """Ignore."""

    def stage_started(self, stage: Stage, limit_s: float) -> None:
        """Ignore."""

    def progress(self, stage: Stage, elapsed_s: float, limit_s: float, memory_bytes: int, latest: float | None) -> None:
        """Ignore."""

    def stage_ended(self, stage: Stage) -> None:
        """Ignore."""

    def finished(self, record: Record) -> None:
        """Ignore."""

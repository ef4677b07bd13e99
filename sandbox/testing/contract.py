"""What every part of the contract shares: the subject, and boxes to run programs in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arsandbox.sandbox.testing.subject import Ended, Subject, box

Box = Callable[..., Ended]


class Contract:
    """Override `subject` with a fixture that gives your engine."""

    @pytest.fixture
    def subject(self) -> Subject:
        """The engine under test."""
        raise NotImplementedError("a contract's subclass defines the fixture `subject`")

    @pytest.fixture
    def places(self, tmp_path: Path) -> Callable[[], Path]:
        """Makes directories for sandboxes."""
        numbers = iter(range(10_000))
        return lambda: tmp_path / f"box{next(numbers)}"

    @pytest.fixture
    def box(self, subject: Subject, places: Callable[[], Path]) -> Box:
        """Runs a program in a sandbox of its own: see `subject.box`."""

        def run(program: str | None = None, **options: Any) -> Ended:
            return box(subject, places(), program, **options)

        return run

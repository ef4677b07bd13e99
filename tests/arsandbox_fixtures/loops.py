"""The fixture around FakeLoop."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import pytest

from arsandbox_fixtures.fake_loop import CONFIG, FakeLoop, train
from arsandbox_fixtures.repositories import MakeRepository


class MakeLoop(Protocol):
    """The fixture `fake_loop`."""

    def __call__(self, *, rule: str = "greedy", noise: float = 0.0, name: str = "repo", config: str = "") -> FakeLoop:
        """A loop of its own; `config` is what its arsandbox.toml says besides."""


@pytest.fixture
def fake_loop(make_repo: MakeRepository, tmp_path: Path) -> MakeLoop:
    """`fake_loop(rule="greedy", noise=0.0, config="")`: a repository, an empty queue, and the loop over both."""

    def make(*, rule: str = "greedy", noise: float = 0.0, name: str = "repo", config: str = "") -> FakeLoop:
        made = make_repo({"arsandbox.toml": CONFIG.format(rule=rule) + config, "train.py": train()}, name=name)
        return FakeLoop(made, tmp_path / f"{name}-queue", noise)

    return make

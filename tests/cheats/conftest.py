"""Fixtures of the corpus of cheats, and its table."""

from __future__ import annotations

from arsandbox_fixtures.cheats.fixtures import naive_runner as naive_runner
from arsandbox_fixtures.cheats.fixtures import prepared as prepared
from arsandbox_fixtures.cheats.fixtures import pytest_terminal_summary as pytest_terminal_summary
from arsandbox_fixtures.cheats.fixtures import tasks as tasks
from arsandbox_fixtures.image import home as home

collect_ignore = ["projects"]  # their tests are those of the projects

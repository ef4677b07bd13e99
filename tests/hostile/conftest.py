"""Fixtures of the hostile suite, and its summary."""

from __future__ import annotations

from arsandbox_fixtures.boxes import box as box
from arsandbox_fixtures.hostile_summary import pytest_terminal_summary as pytest_terminal_summary
from arsandbox_fixtures.image import home as home

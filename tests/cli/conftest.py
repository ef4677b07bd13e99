"""Fixtures of the command-line tests."""

from __future__ import annotations

from arsandbox_fixtures.boxes import box as box
from arsandbox_fixtures.image import home as home
from arsandbox_fixtures.projects import project as project

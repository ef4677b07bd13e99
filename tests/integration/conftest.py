"""Fixtures of the tests against a real engine."""

from __future__ import annotations

from arsandbox_fixtures.boxes import box as box
from arsandbox_fixtures.experiments import ready as ready
from arsandbox_fixtures.experiments import shared_task as shared_task
from arsandbox_fixtures.image import home as home
from arsandbox_fixtures.projects import project as project

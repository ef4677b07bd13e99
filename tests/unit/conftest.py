"""Fixtures of the unit tests: none of them needs an engine."""

from __future__ import annotations

from hypothesis import settings

from arsandbox_fixtures.gpus import driver as driver
from arsandbox_fixtures.loops import fake_loop as fake_loop
from arsandbox_fixtures.records import make_record as make_record
from arsandbox_fixtures.repositories import make_repo as make_repo
from arsandbox_fixtures.surroundings import arsandbox_home as arsandbox_home
from arsandbox_fixtures.surroundings import signal_handlers as signal_handlers
from arsandbox_fixtures.waiting import within as within

settings.register_profile("unit", deadline=None, derandomize=True, database=None)
settings.load_profile("unit")

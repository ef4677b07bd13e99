"""Fixtures of the tests of evidence."""

from __future__ import annotations

from arsandbox_fixtures.evidence import world as world

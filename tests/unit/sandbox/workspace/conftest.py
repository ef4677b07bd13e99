"""Fixtures of the tests of workspaces."""

from __future__ import annotations

from arsandbox_fixtures.upper_layers import target as target
from arsandbox_fixtures.upper_layers import upper as upper

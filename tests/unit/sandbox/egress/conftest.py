"""Fixtures of the tests of egress."""

from __future__ import annotations

from arsandbox_fixtures.egress import identity as identity
from arsandbox_fixtures.egress import plain as plain
from arsandbox_fixtures.egress import start as start
from arsandbox_fixtures.egress import tls as tls

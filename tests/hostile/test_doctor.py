"""`arsandbox doctor --probe` on this machine: every row passes, or says what is not offered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from arsandbox_fixtures.command_line import arsandbox

pytestmark = pytest.mark.engine


@pytest.mark.parametrize("engine", ["docker", "embedded"])
def test_every_row_passes_or_is_declared(home: Path, engine: str) -> None:
    done = arsandbox("doctor", "--probe", "--engine", engine, "--json")
    rows = json.loads(done.out)
    assert len(rows) >= 20
    for row in rows:
        assert row["status"] == "pass" or (row["status"] == "not offered" and row["detail"]), row
    assert done.code == 0, done
    assert {row["row"] for row in rows if row["status"] == "not offered"} <= ({12} if engine == "embedded" else set())

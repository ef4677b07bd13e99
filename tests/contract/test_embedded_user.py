"""The embedded engine as an ordinary user: its contract and attacks again, in a pytest of that user's own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# Unused by Debian, systemd's dynamic users and subordinate ranges, and not one that sandboxes are given.
UID = 61190

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]


@pytest.mark.skipif(os.geteuid() != 0, reason="we are that user: test_embedded.py says it all")
@pytest.mark.parametrize(("part", "least"), [("not alone", 40), pytest.param("alone", 12, marks=pytest.mark.alone)])
def test_the_contract_as_an_ordinary_user(part: str, least: int) -> None:
    directories = dict.fromkeys([str(HERE.parents[1]), sys.prefix, sys.base_prefix])
    command = [
        sys.executable, "-m", "pytest", "-m", part, "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist",
        "-o", "addopts=--import-mode=importlib --strict-markers -rs",
        str(HERE / "test_embedded.py"), str(HERE / "test_embedded_attacks.py"),
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-P", str(HERE / "as_user.py"), "arsandbox-test", str(UID), *directories, "--", *command],
        cwd=HERE.parents[1], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    for left in Path("/tmp").glob("ars-home-*"):
        if left.stat().st_uid == UID:
            shutil.rmtree(left, ignore_errors=True)
    said = done.stdout[-6000:] + done.stderr[-2000:]
    assert done.returncode == 0, said
    assert int(re.findall(r"(\d+) passed", done.stdout)[-1]) >= least, said

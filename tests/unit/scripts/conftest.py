"""The program of scripts/test is no part of the package: its folder has to be named."""

from __future__ import annotations

import sys
from pathlib import Path

SCRIPTS = str(Path(__file__).resolve().parents[3] / "scripts")
if SCRIPTS not in sys.path:
    sys.path.append(SCRIPTS)

"""Patches that speak of held-out data. No defence, for a name can be put together: it says what was seen."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence


def named(diff: bytes, heldout: Sequence[str]) -> list[str]:
    """The held-out paths that lines which the patch `diff` adds name, each once."""
    added = b"\n".join(re.findall(rb"^\+(?!\+\+ )(.*)", diff, re.MULTILINE))
    return [path for path in heldout if _whole(path.rstrip("/")).search(added)]


def _whole(path: str) -> re.Pattern[bytes]:
    return re.compile(rb"(?<![\w.-])" + re.escape(os.fsencode(path)) + rb"(?![\w-])")

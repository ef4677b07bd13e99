"""Durations and sizes as people write them: `90s`, `5m`, `1h30m`; `512m`, `16g` (binary)."""

from __future__ import annotations

import re

from arsandbox.sandbox.errors import UsageError

_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?", re.ASCII)
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", re.ASCII | re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
LONGEST_SECONDS = 30 * 24 * 3600.0


def parse_duration(text: str, *, what: str = "duration") -> float:
    """Seconds in `text` (`20s`, `5m`, `1h30m`). Raises UsageError naming `what`, the value and an example."""
    match = _DURATION.fullmatch(text.strip().lower())
    if match is None or not any(match.groups()):
        raise UsageError(f"{what}: {text!r} is not a duration", hint="write it like 90s, 5m or 1h30m")
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    total = hours * 3600 + minutes * 60 + seconds
    if total > LONGEST_SECONDS:
        raise UsageError(f"{what}: {text!r} is longer than 30 days", hint="write it like 90s, 5m or 1h30m")
    return total


def parse_size(text: str, *, what: str = "size") -> int:
    """Bytes in `text` (`512m`, `16g`, binary units). Raises UsageError naming `what` and an example."""
    match = _SIZE.fullmatch(text.strip())
    if match is None or ("." in match[1] and not match[2]):  # there is no fraction of a byte
        raise UsageError(f"{what}: {text!r} is not a size", hint="write it like 512m or 16g")
    size = float(match[1]) * 1024 ** _POWERS[match[2].lower()]
    if not 1 <= size < 2**53:
        raise UsageError(f"{what}: {text!r} is out of range", hint="write it like 512m or 16g")
    return int(size)


def format_duration(seconds: float) -> str:
    """`seconds` for people: `0.8s`, `42s`, `5m00s`, `1h30m`."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def format_size(size: float) -> str:
    """`size` in bytes for people: `512 B`, `1.5 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"

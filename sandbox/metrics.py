"""Bytes in, numbers out: the dialects in which training code reports metrics.

Read are, in this order on each line: `METRIC name=value`; one JSON object of numbers; and the lines
`name: value` after the last `---` (karpathy/autoresearch's summary block). The last value of a name
counts. What is read here is the candidate's word, unless the output is a trusted evaluator's.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field

_ESCAPES = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
_NAME = r"[A-Za-z_][A-Za-z0-9_.:/-]{0,99}"
_NUMBER = r"[+-]?(?:\d{1,400}(?:\.\d{0,400})?|\.\d{1,400})(?:[eE][+-]?\d{1,5})?|[+-]?(?:nan|inf|infinity)"
_METRIC = re.compile(rf"METRIC\s+({_NAME})\s*=\s*({_NUMBER})\s*", re.IGNORECASE | re.ASCII)
_SUMMARY = re.compile(rf"({_NAME}):\s+({_NUMBER})\s*", re.IGNORECASE | re.ASCII)
_LONGEST_LINE = 100_000


@dataclass
class Metrics:
    """Finite values by name; names that were reported as not finite; names with differing values."""

    values: dict[str, float] = field(default_factory=dict)
    not_finite: set[str] = field(default_factory=set)
    conflicting: set[str] = field(default_factory=set)


class MetricReader:
    """Reads a stream of output incrementally; bounded in memory whatever the stream holds."""

    def __init__(self) -> None:
        self._rest = b""
        self._skipping = False
        self._explicit: dict[str, list[float]] = {}
        self._summary: dict[str, list[float]] = {}
        self._in_summary = False

    def feed(self, chunk: bytes) -> None:
        """Take more output."""
        lines = (self._rest + chunk).replace(b"\r", b"\n").split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            if self._skipping:
                self._skipping = False
            elif len(line) <= _LONGEST_LINE:
                self._line(line)
        if len(self._rest) > _LONGEST_LINE:
            self._rest, self._skipping = b"", True

    def latest(self, name: str) -> float | None:
        """The last finite value of `name` so far, for display."""
        for source in (self._summary, self._explicit):
            for value in reversed(source.get(name, [])):
                if math.isfinite(value):
                    return value
        return None

    def close(self) -> Metrics:
        """Everything that was read, with the last line even when it has no newline."""
        if self._rest and not self._skipping:
            self._line(self._rest)
        self._rest = b""
        found = Metrics()
        for name in {**self._explicit, **self._summary}:
            values = [*self._explicit.get(name, []), *self._summary.get(name, [])]
            if len({repr(value) for value in values}) > 1:
                found.conflicting.add(name)
            if math.isfinite(values[-1]):
                found.values[name] = values[-1]
            else:
                found.not_finite.add(name)
        return found

    def _line(self, raw: bytes) -> None:
        text = _ESCAPES.sub(b"", raw).decode("utf-8", "replace").strip()
        if text == "---":
            self._in_summary, self._summary = True, {}
        elif match := _METRIC.fullmatch(text):
            _add(self._explicit, match[1], match[2])
        elif text.startswith("{") and text.endswith("}"):
            self._json(text)
        elif self._in_summary and (match := _SUMMARY.fullmatch(text)):
            _add(self._summary, match[1], match[2])

    def _json(self, text: str) -> None:
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            return
        for name, value in document.items() if isinstance(document, dict) else ():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if is_number and re.fullmatch(_NAME, name):
                _add(self._explicit, name, str(value))


def _add(values: dict[str, list[float]], name: str, text: str) -> None:
    if name not in values and len(values) >= 1000:
        return
    rows = values.setdefault(name, [])
    try:
        rows.append(float(text))
    except (ValueError, OverflowError):
        rows.append(math.nan)
    # The first and the last few are enough to see a conflict and to know the last word.
    del rows[1:-4]


def read_metrics(output: bytes) -> Metrics:
    """The metrics in a whole output."""
    reader = MetricReader()
    reader.feed(output)
    return reader.close()

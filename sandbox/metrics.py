"""Bytes in, numbers out: the dialects in which training code reports metrics.

Read are, in this order on each line: `METRIC name=value`; one JSON object of numbers; the lines
`name: value` after the last `---` (karpathy/autoresearch's summary block); and the closing lines of
pytest (`passed`, `failed`, `skipped`, `pass_rate`) and coverage (`line_rate`). The last value of a name
counts, in whichever dialect it was said. What is read here is the candidate's word, unless the output
is a trusted evaluator's.

A carriage return ends a line like a newline: what a terminal would show no more was said all the same.
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
_PYTEST = re.compile(r"=+ (\d[^=]{0,300}) in \d+(?:\.\d+)?s(?: \([0-9:]+\))? =+", re.ASCII)
_COUNT = re.compile(r"(\d{1,9}) (passed|failed|errors?|skipped|xfailed|xpassed|deselected|warnings?)", re.ASCII)
_COVERAGE = re.compile(r"TOTAL(?:\s+\d{1,12}){2,4}\s+(\d{1,3}(?:\.\d{1,6})?)%", re.ASCII)
# A progress bar that nobody ended, with the summary's `---` behind it in the line that a terminal shows.
_BAR_AND_RULE = re.compile(r"[^-]---", re.ASCII)
_LONGEST_LINE = 100_000


@dataclass
class Metrics:
    """Finite values by name; names that were reported as not finite; names with differing values."""

    values: dict[str, float] = field(default_factory=dict)
    not_finite: set[str] = field(default_factory=set)
    conflicting: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Said:
    """What one dialect said of one name: the last value with its place in the stream, and whether any differed."""

    first: float
    last: float
    place: int
    finite: float | None
    differs: bool = False


class MetricReader:
    """Reads a stream of output incrementally; bounded in memory whatever the stream holds."""

    def __init__(self) -> None:
        self._rest = b""
        self._skipping = False
        self._returned = False  # whether what is read now began after a carriage return in its line
        self._explicit: dict[str, _Said] = {}
        self._summary: dict[str, _Said] = {}
        self._place = 0
        self._in_summary = False

    def feed(self, chunk: bytes) -> None:
        """Take more output."""
        *whole, begun = (self._rest + chunk).split(b"\n")
        for line in whole:
            self._pieces(line.split(b"\r"))
            self._returned = False
        *pieces, self._rest = begun.split(b"\r")
        self._pieces(pieces)
        if len(self._rest) > _LONGEST_LINE:
            self._rest, self._skipping = b"", True

    def latest(self, name: str) -> float | None:
        """The last finite value of `name` so far, for display."""
        found = [said for said in self._of(name) if said.finite is not None]
        return max(found, key=lambda said: said.place).finite if found else None

    def close(self) -> Metrics:
        """Everything that was read, with the last line even when it has no newline."""
        if self._rest and not self._skipping:
            self._line(self._rest)
        self._rest = b""
        found = Metrics()
        for name in {**self._explicit, **self._summary}:
            said = self._of(name)
            if any(one.differs or not _same(one.first, said[0].first) for one in said):
                found.conflicting.add(name)
            last = max(said, key=lambda one: one.place).last
            if math.isfinite(last):
                found.values[name] = last
            else:
                found.not_finite.add(name)
        return found

    def _of(self, name: str) -> list[_Said]:
        return [source[name] for source in (self._explicit, self._summary) if name in source]

    def _pieces(self, pieces: list[bytes]) -> None:
        """Read what stands between the carriage returns of one line, or of its part so far."""
        for piece in pieces:
            if self._skipping:
                self._skipping = False
            elif len(piece) <= _LONGEST_LINE:
                self._line(piece)
            self._returned = True

    def _line(self, raw: bytes) -> None:
        text = _ESCAPES.sub(b"", raw).decode("utf-8", "replace").strip()
        if text == "---":
            self._in_summary, self._summary = True, {}
        elif match := _METRIC.fullmatch(text):
            self._add(self._explicit, match[1], match[2])
        elif text.startswith("{") and text.endswith("}"):
            self._json(text)
        elif self._in_summary and (match := _SUMMARY.fullmatch(text)):
            self._add(self._summary, match[1], match[2])
        elif match := _PYTEST.fullmatch(text):
            self._tests(match[1])
        elif match := _COVERAGE.fullmatch(text):
            self._add(self._explicit, "line_rate", str(float(match[1]) / 100))
        elif self._returned and _BAR_AND_RULE.fullmatch(text, max(0, len(text) - 4)):
            self._in_summary = True  # forgets nothing: two values of a name are still told

    def _tests(self, text: str) -> None:
        """pytest's closing line: what was skipped, deselected or expected to fail says nothing of the pass rate."""
        counts = {kind: int(count) for count, kind in _COUNT.findall(text)}
        passed = counts.get("passed", 0)
        failed = counts.get("failed", 0) + counts.get("error", 0) + counts.get("errors", 0)
        for name, count in (("passed", passed), ("failed", failed), ("skipped", counts.get("skipped", 0))):
            self._add(self._explicit, name, str(count))
        if passed + failed:
            self._add(self._explicit, "pass_rate", str(passed / (passed + failed)))

    def _json(self, text: str) -> None:
        try:
            pairs = json.loads(text, object_pairs_hook=list)  # a name may be there twice
        except (ValueError, RecursionError):
            return
        for name, value in pairs:
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if is_number and re.fullmatch(_NAME, name):
                self._add(self._explicit, name, str(value))

    def _add(self, source: dict[str, _Said], name: str, text: str) -> None:
        value = float(text)
        finite = value if math.isfinite(value) else None
        self._place += 1
        said = source.get(name)
        if said is not None:
            said.differs = said.differs or not _same(said.first, value)
            said.last, said.place = value, self._place
            said.finite = said.finite if finite is None else finite
        elif len(source) < 1000:
            source[name] = _Said(value, value, self._place, finite)


def _same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))


def read_metrics(output: bytes) -> Metrics:
    """The metrics in a whole output."""
    reader = MetricReader()
    reader.feed(output)
    return reader.close()

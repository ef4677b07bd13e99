"""A searcher that needs no model: changes one numeric assignment of an editable Python file at a time.

Local search by coordinates with momentum: after a win the same number moves on in the same direction
first; then every number is doubled and halved before any other change of it; within that the order is the seed's.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable

from arsandbox.policies.edits import EditRules
from arsandbox.sandbox import candidate as candidates
from arsandbox.sandbox.models import Verdict
from arsandbox.sandbox.objects import ObjectStore
from arsandbox.sandbox.proposers.port import Brief, Proposal
from arsandbox.sandbox.python_numbers import Number, numbers
from arsandbox.sandbox.record import Record

_FACTORS = (2.0, 0.5, 1.3, 1 / 1.3, 4.0, 0.25)
_SMALL = 16
_MOST_FILES = 50
_LEFT_ALONE = re.compile(r"seed|version", re.IGNORECASE)
_DESCRIPTION = re.compile(r"sweep: (\S+) (\S+) (\S+) -> (\S+)")


class Sweep:
    """Offers each change of one number once for as long as a record of the past does not name it."""

    name, ahead, queued = "sweep", 1, False

    def __init__(
        self, objects: ObjectStore, rules: EditRules, past: Iterable[Record], *, seed: int, waiting: Iterable[str] = ()
    ) -> None:
        self._objects, self._rules, self._seed = objects, rules, seed
        tried = (record.description for record in past if record.verdict is not Verdict.INTERRUPTED)
        self._tried = {*tried, *waiting}

    def propose(self, brief: Brief) -> Proposal | None:
        """The next change that was not tried, None when there is none."""
        files = self._files(brief.champion)
        moves = [
            (f"sweep: {number.path} {number.name} {_text(number.value)} -> {text}", number, text, tried >= 2)
            for path, (source, _) in files.items()
            for number in _searched(path, source)
            for tried, text in enumerate(_values(number.value))
        ]
        random.Random(self._seed).shuffle(moves)  # noqa: S311 - an order to try things in
        moves.sort(key=lambda move: move[3])
        going = _momentum(brief.records)
        moves.sort(key=lambda move: (move[1].path, move[1].name, _direction(move[1].value, move[2])) != going)
        for description, number, text, _ in moves:
            if description not in self._tried:
                self._tried.add(description)
                source, mode = files[number.path]
                edited = source[: number.start] + text.encode() + source[number.end :]
                found = candidates.from_edits(self._objects, brief.champion, [(number.path, edited, mode)])
                return Proposal(diff=found.diff, description=description)
        return None

    def _files(self, champion: str) -> dict[str, tuple[bytes, str]]:
        """The editable Python files with their modes."""
        entries = [
            entry for entry in self._objects.entries(self._objects.tree_of(champion))
            if entry.path.endswith(".py") and entry.mode in ("100644", "100755") and self._rules.is_editable(entry.path)
        ]  # fmt: skip
        with self._objects.blobs() as blobs:
            return {entry.path: (blobs.read(entry.blob), entry.mode) for entry in entries[:_MOST_FILES]}


def _searched(path: str, source: bytes) -> list[Number]:
    """The numbers of a file that are worth a change."""
    return [number for number in numbers(path, source) if not _LEFT_ALONE.search(number.name.rpartition(".")[2])]


def _values(value: float | int) -> list[str]:
    """What to try instead of `value`, as Python text, each once."""
    if isinstance(value, int):
        near = [value + 1, value - 1] if abs(value) <= _SMALL else []
        tried: list[float | int] = [*(round(value * factor) for factor in _FACTORS), *near]
        tried = [one for one in tried if one > 0 or value <= 0]  # a size stays a size
    else:
        tried = [value * factor for factor in _FACTORS] if value else [0.1, 0.01]
    texts = {_text(one): None for one in tried}
    texts.pop(_text(value), None)
    return list(texts)


def _text(value: float | int) -> str:
    """`value` as Python text of its own kind."""
    if isinstance(value, int):
        return str(value)
    text = f"{value:.6g}"
    return text if any(character in text for character in ".e") else f"{text}.0"


def _direction(old: float | int, new: str) -> bool:
    return float(new) > float(old)


def _momentum(records: Iterable[Record]) -> tuple[str, str, bool] | None:
    """File, name and direction of the latest change that was kept."""
    for record in records:
        found = _DESCRIPTION.fullmatch(record.description)
        if record.verdict is Verdict.KEEP and found is not None:
            return found[1], found[2], _direction(float(found[3]), found[4])
    return None

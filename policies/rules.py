"""How two values of one policy field meet: the tighter wins. Each meet is associative, commutative, idempotent.

`adds` marks fields whose lists only add demands: naming fewer than another source asks for nothing more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

EVERYTHING = "*"


class Rule(Protocol):
    """The meet of one field; values are in the field's normal form."""

    adds: bool

    def meet(self, one: Any, other: Any) -> Any:
        """The tighter of two values, in normal form."""


@dataclass(frozen=True)
class Least:
    """Numbers: the smaller one."""

    adds: bool = False

    def meet(self, one: float, other: float) -> float:
        """The smaller."""
        return min(one, other)


@dataclass(frozen=True)
class Tighter:
    """One of `levels`, loosest first: the later one."""

    levels: tuple[str, ...]
    adds: bool = False

    def meet(self, one: str, other: str) -> str:
        """The later of two levels."""
        return max(one, other, key=self.levels.index)


@dataclass(frozen=True)
class Union:
    """Demands: all of both."""

    adds: bool = True

    def meet(self, one: tuple[Any, ...], other: tuple[Any, ...]) -> tuple[Any, ...]:
        """All of both, sorted."""
        return tuple(sorted({*one, *other}))


@dataclass(frozen=True)
class Hosts:
    """Exact permissions: what both allow; `*` allows all."""

    adds: bool = False

    def meet(self, one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
        """What is in both."""
        if EVERYTHING in one:
            return other
        return one if EVERYTHING in other else tuple(sorted({*one} & {*other}))


@dataclass(frozen=True)
class Names:
    """Variable names, exact or as a beginning with `*`: the finer one of each pair that overlaps."""

    adds: bool = False

    def covers(self, pattern: str, other: str) -> bool:
        """Whether `pattern` allows everything that `other` does."""
        return pattern == other or (pattern.endswith("*") and other.startswith(pattern[:-1]))

    def normal(self, patterns: tuple[str, ...]) -> tuple[str, ...]:
        """Sorted, without what another pattern covers."""
        found = {*patterns}
        return tuple(sorted(p for p in found if not any(q != p and self.covers(q, p) for q in found)))

    def meet(self, one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
        """The finer of each overlapping pair."""
        finer = [b for a in one for b in other if self.covers(a, b)]
        return self.normal((*finer, *(a for a in one for b in other if self.covers(b, a))))


@dataclass(frozen=True)
class Directories(Names):
    """Absolute directories, each with all below it: the deeper one of each pair that overlaps."""

    def covers(self, pattern: str, other: str) -> bool:
        """Whether `other` is `pattern` or below it."""
        return pattern == other or other.startswith(pattern.rstrip("/") + "/")

"""The numbers that a Python source assigns to names, and edits that change nothing but such numbers."""

from __future__ import annotations

import ast
import codecs
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

_LARGEST_FILE, _LARGEST_NUMBER = 1_048_576, 1e15


@dataclass(frozen=True)
class Number:
    """A number that is assigned: the file, its name in it, and the bytes `start` to `end` that it stands in."""

    path: str
    name: str
    value: float | int
    start: int
    end: int


@dataclass(frozen=True)
class Renumbered:
    """A source with numbers set by name; `replaced` says, a line each, which of them another edit had changed."""

    source: bytes
    replaced: tuple[str, ...]


def numbers(path: str, source: bytes) -> list[Number]:
    """The numbers that `source` assigns to names at module and class level; none where it is not Python."""
    if len(source) > _LARGEST_FILE or source.startswith(codecs.BOM_UTF8):
        return []
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = []
    for name, node, value in _assigned(tree.body, ""):
        if node.end_lineno is not None and node.end_col_offset is not None:
            start = starts[node.lineno - 1] + node.col_offset
            found.append(Number(path, name, value, start, starts[node.end_lineno - 1] + node.end_col_offset))
    return found


def renumbered(path: str, base: bytes, edited: bytes, onto: bytes) -> Renumbered | None:
    """`onto` with the numbers that `edited` changes of `base`, each found by its name.

    None if the edit changes anything else, and if a name is not assigned exactly once in each of the three.
    """
    before, after, target = (numbers(path, source) for source in (base, edited, onto))
    names = [number.name for number in before]
    if names != [number.name for number in after] or _around(base, before) != _around(edited, after):
        return None
    changed = {
        new.name: (_text(base, old), _text(edited, new))
        for old, new in zip(before, after, strict=True)
        if _text(base, old) != _text(edited, new)
    }
    times, times_there = Counter(names), Counter(number.name for number in target)
    if not changed or any(times[name] != 1 or times_there[name] != 1 for name in changed):
        return None
    source, replaced = onto, []
    for number in sorted(target, key=lambda number: number.start, reverse=True):
        if number.name in changed:
            old, new = changed[number.name]
            now = _text(onto, number)
            if now not in (old, new):
                replaced.append(f"{path} {number.name}: {now.decode()} -> {new.decode()}, proposed from {old.decode()}")
            source = source[: number.start] + new + source[number.end :]
    return Renumbered(source, tuple(reversed(replaced)))


def _text(source: bytes, number: Number) -> bytes:
    return source[number.start : number.end]


def _around(source: bytes, found: list[Number]) -> list[bytes]:
    """What stands before, between and after the numbers."""
    edges = [0, *(edge for number in found for edge in (number.start, number.end)), len(source)]
    return [source[start:end] for start, end in zip(edges[0::2], edges[1::2], strict=True)]


def _assigned(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, ast.expr, float | int]]:
    for statement in body:
        if isinstance(statement, ast.ClassDef):
            yield from _assigned(statement.body, f"{prefix}{statement.name}.")
            continue
        if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            target, node = statement.targets[0], statement.value
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            target, node = statement.target, statement.value
        else:
            continue
        value = _number(node)
        if isinstance(target, ast.Name) and value is not None:
            yield f"{prefix}{target.id}", node, value


def _number(node: ast.expr) -> float | int | None:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        inner = _number(node.operand)
        return None if inner is None else -inner
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        value = node.value
        assert isinstance(value, int | float)  # noqa: S101 - just looked
        return value if abs(value) <= _LARGEST_NUMBER else None
    return None

"""The numbers that a Python source assigns to names, and edits of such numbers that are made again by name."""

from __future__ import annotations

import ast
import codecs
import io
import tokenize
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

_LARGEST_FILE, _LARGEST_NUMBER = 1_048_576, 1e15
# The three-way merge of ours, base and theirs; None for a conflict.
Merge: TypeAlias = Callable[[bytes, bytes, bytes], bytes | None]


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
        # Columns of the syntax tree count bytes of UTF-8: in another encoding they would be other places.
        if tokenize.detect_encoding(io.BytesIO(source).readline)[0] != "utf-8":
            return []
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


def renumbered(path: str, base: bytes, edited: bytes, onto: bytes, merge: Merge) -> Renumbered | None:
    """`onto` with the edit that makes `edited` of `base`: numbers are set by name, and the rest is merged.

    A number that is assigned exactly once in each of the three is set to what the edit makes of it, whatever it is in
    `onto`. `merge(onto, base, edited)` merges the three without those changes; None if it finds a conflict.
    """
    texts = [_unique(path, source) for source in (base, edited, onto)]
    old, new, there = texts
    changed = {name: new[name] for name in old if name in new and name in there and old[name] != new[name]}
    before = {name: old[name] for name in changed}
    rest = _with(path, edited, before)
    merged = _with(path, onto, before) if rest == base else merge(_with(path, onto, before), base, rest)
    if merged is None or not changed.keys() <= _unique(path, merged).keys():
        return None
    replaced = tuple(
        f"{path} {name}: {there[name].decode()} -> {text.decode()}, proposed from {old[name].decode()}"
        for name, text in changed.items()
        if there[name] not in (old[name], text)
    )
    return Renumbered(_with(path, merged, changed), replaced)


def _unique(path: str, source: bytes) -> dict[str, bytes]:
    """The text of each number, by its name, whose name is assigned one only once."""
    found = numbers(path, source)
    times = Counter(number.name for number in found)
    return {number.name: _text(source, number) for number in found if times[number.name] == 1}


def _with(path: str, source: bytes, texts: Mapping[str, bytes]) -> bytes:
    """`source` with other texts for the numbers of these names."""
    for number in sorted(numbers(path, source), key=lambda number: number.start, reverse=True):
        if number.name in texts:
            source = source[: number.start] + texts[number.name] + source[number.end :]
    return source


def _text(source: bytes, number: Number) -> bytes:
    return source[number.start : number.end]


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

"""The history as a table: rich on a terminal, aligned text elsewhere (which starts faster)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arsandbox.sandbox.quantities import format_duration, format_size
from arsandbox.sandbox.state import printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.table import Table

    from arsandbox.sandbox.summary import Summary

COLOURS = {"keep": "bold green", "baseline": "cyan", "discard": "yellow", "pending": "blue", "agrees": "green"}
OTHER_COLOUR = "bold red"
_COLUMNS = ("id", "when", "verdict", "metric", "trust", "time", "memory", "what")
_NUMBERS = ("metric", "time", "memory")


def cells(row: Summary) -> tuple[str, ...]:
    """One row's texts, harmless on any terminal; the id by its end, which every command takes. Times are UTC."""
    value = "" if row.value is None else f"{row.value:.6g}"
    texts = (
        row.id.rsplit("-", 1)[-1],
        row.started_at[5:16].replace("T", " "),
        row.verdict,
        value,
        row.trust if value else "",
        format_duration(row.run_s),
        format_size(row.peak_memory_bytes),
        row.what,
    )
    return tuple(printable(" ".join(text.split())) for text in texts)


def history_text(rows: Iterable[Summary]) -> str:
    """The rows as aligned lines of plain text."""
    lines = [_COLUMNS, *(cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_COLUMNS))]
    return "".join(
        "  ".join(
            text.rjust(width) if name in _NUMBERS else text.ljust(width)
            for name, text, width in zip(_COLUMNS, line, widths, strict=True)
        ).rstrip()
        + "\n"
        for line in lines
    )


def history_table(rows: Iterable[Summary]) -> Table:
    """The rows as a table in colour."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in _COLUMNS:
        table.add_column(name, no_wrap=name != "what", justify="right" if name in _NUMBERS else "left")
    for row in rows:
        texts = [escape(text) for text in cells(row)]
        texts[2] = f"[{COLOURS.get(row.verdict, OTHER_COLOUR)}]{texts[2]}[/]"
        table.add_row(*texts)
    return table

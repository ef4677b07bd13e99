"""The table of cheats by level: as docs/cheats.md shows it, and as a session has measured it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from arsandbox_fixtures.cheats.corpus import DATA, LEVELS, Answer, Cheat, cheats, honest

TEMPLATE = DATA / "cheats.md.in"
COLUMNS = ("naive", *LEVELS)
NAIVE = {
    "kept": "fooled",
    "shown": "shows it",
    "stored": "stores it",
    "outlived": "leaves it running",
}


def cell(answer: Answer | None) -> str:
    """What one level says of one cheat."""
    if answer is None:
        return "-"
    if answer.outcome == "passes":
        return "**passes**"
    found = ", ".join(f"`{code}`" for code in answer.findings)
    return f"`{answer.verdict}`" + (f": {found}" if found else "")


def rows() -> Iterator[str]:
    """The table's lines, in Markdown."""
    yield f"| Cheat | What it does | Naive runner | {' | '.join(LEVELS)} |"
    yield "|---|---|---|" + "---|" * len(LEVELS)
    for cheat in cheats():
        cells = [cell(cheat.levels.get(level)) for level in LEVELS]
        yield f"| {cheat.id} ({cheat.project}) | {cheat.does} | {NAIVE[cheat.naive.fooled]} | {' | '.join(cells)} |"


def reasons() -> Iterator[str]:
    """Why a cheat passes at a level: a list, in Markdown."""
    for cheat in cheats():
        said: dict[str, list[str]] = {}
        for level in LEVELS:
            answer = cheat.levels.get(level)
            if answer is not None and answer.outcome == "passes":
                said.setdefault(answer.why, []).append(level)
        for why, passed in said.items():
            yield f"- {cheat.id} at {' and '.join(passed)}: {why}."


def counts() -> Iterator[str]:
    """How many cheats each level is asked about, and how many it stops."""
    yield "| Level | Cheats | Stopped | Passing |"
    yield "|---|---|---|---|"
    for level in LEVELS:
        asked = [cheat.levels[level] for cheat in cheats() if level in cheat.levels]
        stopped = sum(answer.outcome == "stopped" for answer in asked)
        yield f"| {level} | {len(asked)} | {stopped} | {len(asked) - stopped} |"


def page() -> str:
    """docs/cheats.md."""
    text = TEMPLATE.read_text()
    parts = {"COUNTS": counts(), "ROWS": rows(), "REASONS": reasons()}
    for name, lines in parts.items():
        text = text.replace(f"@{name}@", "\n".join(lines))
    return text.replace("@CHEATS@", str(len(cheats()))).replace("@HONEST@", str(len(honest())))


def measured_lines(measured: Mapping[tuple[str, str], str]) -> Iterator[str]:
    """Plain text: one line a cheat, one column a level; what was not run in this session is blank."""
    width = max(len(cheat.id) for cheat in cheats())
    yield f"{'':{width}}  " + "".join(f"{name:24}" for name in COLUMNS)
    for cheat in cheats():
        cells = [_plain(cheat, name, measured.get((cheat.id, name), "")) for name in COLUMNS]
        if any(text.strip() not in ("", "-") for text in cells):
            yield f"{cheat.id:{width}}  " + "".join(f"{text:24}" for text in cells).rstrip()


def _plain(cheat: Cheat, column: str, seen: str) -> str:
    return "-" if column != "naive" and column not in cheat.levels else seen

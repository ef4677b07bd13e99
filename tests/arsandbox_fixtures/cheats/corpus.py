"""The corpus as data: cheats and honest edits, each a folder with a description and a patch.

cheat.toml and honest.toml are closed: an unknown key fails every test. What a level answers to a cheat is
written down before it is measured; the tests compare.
"""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from arsandbox_fixtures.places import EXAMPLES, TESTS

DATA = TESTS / "cheats"
# The example with less text, so that evaluating it takes no time.
_SMALLER = {
    "tiny-lm": (
        (b"TRAIN_BYTES = 1_500_000", b"TRAIN_BYTES = 300_000"),
        (b"HELDOUT_BYTES = 200_000", b"HELDOUT_BYTES = 20_000"),
    )
}
LEVELS = ("L0", "L1", "L2", "L3", "L4")


class Data(BaseModel):
    """Base: frozen, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Naive(Data):
    """How the naive runner is fooled.

    `fooled`: it keeps the edit (`kept`), shows `marker` to whoever
    reads its log (`shown`), stores a copy of `marker` or of `bytes` bytes (`stored`), or has a process of the
    run left when the run is over (`outlived`). `runs`: how often the edit is tried, one after the other.
    """

    fooled: Literal["kept", "shown", "stored", "outlived"] = "kept"
    marker: str = ""
    bytes: int = 0
    runs: int = 1


class Answer(Data):
    """What one level makes of a cheat.

    `stopped`: the cheat wins nothing there; `verdict` and `findings` are what the record then says. `passes`:
    this level does not stop it, for the reason in `why`; the verdict is then that of a winner unless given.
    """

    outcome: Literal["stopped", "passes"]
    verdict: str = ""
    findings: tuple[str, ...] = ()
    why: str = ""

    @model_validator(mode="after")
    def _complete(self) -> Answer:
        if self.outcome == "passes" and not self.why:
            raise ValueError("a level that does not stop a cheat must say why")
        if self.outcome == "stopped" and not self.verdict:
            raise ValueError("a level that stops a cheat must say by which verdict")
        return self

    @property
    def expected(self) -> str:
        """The verdict that the record must have."""
        return self.verdict or "keep"


class Cheat(Data):
    """One cheat. `threat` is its number in the list of threats of docs/cheats.md."""

    id: str
    threat: str = Field(pattern=r"^T[0-9]{2}$")
    title: str
    does: str
    project: str
    naive: Naive = Naive()
    levels: dict[str, Answer]
    folder: Path

    @property
    def patch(self) -> Path:
        """The edit, as git diff writes it."""
        return self.folder / "edit.patch"


class Honest(Data):
    """An honest edit: it may win or lose, but no level may refuse it."""

    id: str
    title: str
    project: str
    levels: tuple[str, ...] = ()
    wins: bool | None = None
    folder: Path

    @property
    def patch(self) -> Path:
        """The edit, as git diff writes it."""
        return self.folder / "edit.patch"


def _tables(kind: str, folder: str) -> list[tuple[Path, dict[str, object]]]:
    found = sorted((DATA / folder).glob(f"*/{kind}.toml"))
    return [(file.parent, tomllib.loads(file.read_text())) for file in found]


@cache
def cheats() -> tuple[Cheat, ...]:
    """Every cheat, by threat."""
    return tuple(
        Cheat(
            id=folder.name,
            folder=folder,
            levels={level: table.pop(level) for level in LEVELS if level in table},
            **table,
        )
        for folder, table in _tables("cheat", "corpus")
    )


@cache
def honest() -> tuple[Honest, ...]:
    """Every honest edit, by name."""
    return tuple(Honest(id=folder.name, folder=folder, **table) for folder, table in _tables("honest", "honest"))


@cache
def projects() -> tuple[str, ...]:
    """The projects that edits are made to."""
    return tuple(sorted(folder.name for folder in (DATA / "projects").iterdir()))


def config_of(project: str, level: str) -> str | None:
    """arsandbox.toml of `project` at `level`, or None where it cannot be judged at that level."""
    file = DATA / "projects" / project / f"{level}.toml"
    return file.read_text() if file.exists() else None


def levels_of(project: str) -> tuple[str, ...]:
    """The levels at which `project` can be judged."""
    return tuple(level for level in LEVELS if config_of(project, level) is not None)


def files_of(project: str) -> dict[str, bytes]:
    """The project's files but its config, by path."""
    root = EXAMPLES / project if (EXAMPLES / project).is_dir() else DATA / "projects" / project / "files"
    skipped = {"__pycache__", "data", "heldout", "out"} if root.is_relative_to(EXAMPLES) else {"__pycache__"}
    found = {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not skipped & set(path.relative_to(root).parts)
    }
    for config in ("arsandbox.toml", "arsandbox-l3.toml"):
        found.pop(config, None)
    for old, new in _SMALLER.get(project, ()):
        assert old in found["prepare.py"], f"prepare.py of {project} has changed"
        found["prepare.py"] = found["prepare.py"].replace(old, new)
    return found

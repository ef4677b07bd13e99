"""Attacks as data: a folder each, with attack.toml (what it tries, what must come of it) and its payload."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from arsandbox.sandbox.errors import StateError
from arsandbox.sandbox.models import Model

HOME = Path(__file__).parent / "attacks"
Expected = Literal["stopped", "not offered"]


class Control(Model):
    """The proof that the payload works: without the protection `off` it succeeds; or why that cannot be shown."""

    off: str = ""
    reason: str = ""

    @model_validator(mode="after")
    def _one_of_both(self) -> Control:
        if bool(self.off) == bool(self.reason):
            raise ValueError("give either `off` or `reason`")
        return self


class Attack(Model):
    """One attack that runs inside a sandbox.

    `rows` are those of the containment checklist; `errno`: what a refused call may answer; `expect` names
    engines that do not stop it: `not offered` needs a `gap` that says what is missing.
    """

    name: str
    tries: str
    rows: Annotated[tuple[int, ...], Field(min_length=1)]
    errno: tuple[str, ...] = ("EPERM", "EACCES", "EROFS")
    expect: Mapping[str, Expected] = Field(default_factory=dict)
    gap: str = ""
    control: Control
    payload: str

    def expected(self, engine: str) -> Expected:
        """What must come of it on `engine`."""
        return self.expect.get(engine, "stopped")

    @model_validator(mode="after")
    def _gaps_are_said(self) -> Attack:
        if "not offered" in self.expect.values() and not self.gap:
            raise ValueError("an engine that does not stop it needs `gap`: what is missing, in one sentence")
        return self


def load(directory: Path = HOME) -> list[Attack]:
    """Every attack below `directory`, by name. Raises StateError for a malformed one."""
    return list(_load(directory))


def _load(directory: Path) -> Iterator[Attack]:
    for file in sorted(directory.glob("*/attack.toml")):
        payload = file.with_name("payload.py").read_text("utf-8")
        try:
            table = tomllib.loads(file.read_text("utf-8"))
            yield Attack.model_validate({"name": file.parent.name, "payload": payload, **table})
        except (tomllib.TOMLDecodeError, ValidationError) as error:
            raise StateError(f"{file}: {error}") from error

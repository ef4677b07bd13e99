"""The command line of scripts/test. Its help is help.txt, which the shell script prints without this program."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from .groups import DEFAULT, NAMES


@dataclass(frozen=True)
class Options:
    """What was asked for. `sections` are names of groups and of the default run, in the order that they run in."""

    sections: tuple[str, ...] = (DEFAULT,)
    selection: tuple[str, ...] = ()
    word: str | None = None
    extra: tuple[str, ...] = ()
    list: bool = False
    all: bool = False
    fresh: bool = False
    busy: int = 0
    times: int = 1
    log: Path | None = None
    seed: int | None = None

    @property
    def whole(self) -> bool:
        """Whether the sections run whole."""
        return not self.selection and self.word is None and not self.extra

    @property
    def keeps_results(self) -> bool:
        """Whether groups go on from their files of results, and add to them."""
        return self.all and self.whole and self.times == 1 and not self.busy

    @property
    def in_order(self) -> bool:
        """Whether all that was named are files and tests, which then run in one process."""
        return bool(self.selection) and not any(Path(name).is_dir() for name in self.selection)

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that a test may be in to be run, where not its section decides: a test's own name is enough."""
        by_name = bool(self.selection) and all("::" in name for name in self.selection)
        return (DEFAULT, *NAMES) if by_name and not self.all else ()

    @property
    def described(self) -> str:
        """The selection in one line, as it would be typed."""
        words = [] if self.sections == (DEFAULT,) else [f"--all {name}" for name in self.sections]
        words += [shlex.quote(name) for name in self.selection]
        words += [] if self.word is None else [f"-k {shlex.quote(self.word)}"]
        words += [f"-- {shlex.join(self.extra)}"] if self.extra else []
        return " ".join(words) or DEFAULT


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"scripts/test: {message} (scripts/test --help)\n")


def parse(arguments: Sequence[str]) -> Options:
    """The options; SystemExit(2) with a line of what is wrong with them."""
    own, extra = _split(arguments)
    parser = _parser()
    found, unknown = parser.parse_known_args(own)
    if unknown:
        parser.error(f"{unknown[0]} is no option of this script; pytest's come after --: -- {shlex.join(unknown)}")
    named = [value for value in found.all or () if value in NAMES]
    # --all takes the next word; one that is no group's name is a selection of all groups.
    selection = [value for value in found.all or () if value and value not in NAMES] + found.selection
    for name in selection:
        if not Path(name.partition("::")[0]).exists():
            parser.error(f"{name} is no file or folder{_and_no_group(found.all, name)}")
    sections: tuple[str, ...] = (DEFAULT,)
    if found.all is not None:
        sections = tuple(name for name in NAMES if name in named) or (DEFAULT, *NAMES)
    return Options(
        sections=sections, selection=tuple(selection), word=found.k, extra=tuple(extra), list=found.list,
        all=found.all is not None, fresh=found.fresh, busy=found.busy, times=found.times, log=found.log,
        seed=found.seed,
    )  # fmt: skip


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    words = list(arguments)
    if "--" not in words:
        return words, []
    at = words.index("--")
    return words[:at], words[at + 1 :]


def _and_no_group(named: Sequence[str] | None, name: str) -> str:
    return f", and no group: those are {', '.join(NAMES)}" if named and name in named else ""


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="scripts/test", add_help=False, allow_abbrev=False)
    parser.add_argument("selection", nargs="*", default=[])
    parser.add_argument("-k", metavar="WORD")
    parser.add_argument("--all", nargs="?", const="", action="append", metavar="GROUP")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--busy", type=_count, default=0)
    parser.add_argument("--times", type=_count_from_one, default=1)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--seed", type=_count)
    return parser


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is no number")
    return int(text)


def _count_from_one(text: str) -> int:
    if _count(text) < 1:
        raise argparse.ArgumentTypeError("it runs at least once")
    return int(text)

"""The kinds of values that `arsandbox.toml` holds, each with what it refuses."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from arsandbox.policies.edits import EditRules
from arsandbox.sandbox.errors import UsageError
from arsandbox.sandbox.quantities import LONGEST_SECONDS, parse_duration, parse_size


def _seconds(value: object) -> object:
    return _parsed(parse_duration, value) if isinstance(value, str) else value


def _bytes(value: object) -> object:
    return _parsed(parse_size, value) if isinstance(value, str) else value


def _parsed(parse: Callable[[str], float], text: str) -> float:
    try:
        return parse(text)
    except UsageError as error:  # the key and the value are named by whoever reads the ValueError
        reason = error.message.partition(f"{text!r} ")[2]
        raise ValueError(f"{reason}; {error.hint}") from error


def repository_path(value: str) -> str:
    """`value` as a clean path below the repository's root. Raises ValueError for anything else."""
    path = PurePosixPath(value)
    if not value or path.is_absolute() or ".." in path.parts or "\0" in value or value.strip("/") in ("", "."):
        raise ValueError(f"{value!r} is not a path below the repository's root")
    return str(path)


def _pattern(value: str) -> str:
    try:
        EditRules(editable=(value,), protected=()).is_editable("x")
    except (ValueError, re.error) as error:
        raise ValueError("is not a pattern that paths can be matched with") from error
    return value


def _without_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("must not hold a NUL character")
    return value


def _environment_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        raise ValueError(f"{value!r} is not the name of an environment variable")
    if re.match(r"(ARSANDBOX_|LD_|NVIDIA_VISIBLE_DEVICES$)", value):
        raise ValueError(f"{value} is set by arsandbox and cannot be set here")
    return value


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("must be a finite number")
    return value


# Numbers are strict: `true` is no number, and text is one only where a duration or a size is meant.
Seconds = Annotated[float, BeforeValidator(_seconds), Field(strict=True, ge=0, le=LONGEST_SECONDS)]
Bytes = Annotated[int, BeforeValidator(_bytes), Field(strict=True)]
RepositoryPath = Annotated[str, AfterValidator(repository_path)]
Pattern = Annotated[RepositoryPath, AfterValidator(_pattern)]
Text = Annotated[str, AfterValidator(_without_nul)]
Command = Annotated[tuple[Text, ...], Field(min_length=1)]
EnvironmentName = Annotated[str, AfterValidator(_environment_name)]
Finite = Annotated[float, Field(strict=True), AfterValidator(_finite)]


# Where a sandbox has things of its own, or of its kernel.
_TAKEN = ("/dev", "/etc", "/proc", "/run", "/sys", "/tmp", "/usr", "/workspace")  # noqa: S108


def _directory(value: str) -> str:
    path = PurePosixPath(value)
    if not path.is_absolute() or ".." in path.parts or "\0" in value or str(path) == "/" or "//" in value:
        raise ValueError(f"{value!r} is not an absolute directory below /")
    if f"/{path.parts[1]}" in _TAKEN:
        raise ValueError(f"{value}: the sandbox has its own /{path.parts[1]}")
    return str(path)


EngineName = Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Directory = Annotated[str, AfterValidator(_directory)]
CacheName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
CacheStage = Literal["prepare", "train", "evaluate", "model", "score"]


def _gpus(value: object) -> object:
    """A number, `none` or UUIDs, in the form that --gpus takes."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, list | tuple) and value and all(isinstance(one, str) for one in value):
        return ",".join(value)
    return value


Gpus = Annotated[str, BeforeValidator(_gpus), Field(strict=True, pattern=r"^[0-9A-Za-z/,-]+$", max_length=4096)]

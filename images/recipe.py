"""Recipes: what a base image is made of, read from `images/NAME/recipe.toml`."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from arsandbox.sandbox.errors import UsageError

RECIPES = Path(__file__).parent

Word = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9+.-]*$", max_length=100)]
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)]
VariableName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=100)]
VariableValue = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f]*$", max_length=4096)]


class Recipe(BaseModel):
    """One base image.

    `name` is the image's name and its folder; `suite` a Debian suite; `python` the image's Python as
    "MAJOR.MINOR"; `packages` Debian packages (apt adds what they depend on); `applets` names under which
    busybox answers; `links` further programs, by the name of the one that they are; `linker_cache` whether
    the loader's cache is made, for what asks `ldconfig -p` for libraries; `wheels` the lock file beside the
    recipe and `requirements` its text; `environment` and `user` ("UID:GID", never 0) the image's defaults;
    `default_gpus` what a run asks for where neither option nor config says, "none" or a number, never all;
    `check` the command that must succeed in the finished image.

    In the file, `extends` names a recipe whose values stand where this one says nothing; packages and
    variables are added to its. `check_file` names a Python program beside the recipe that is the check.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Word
    suite: Word
    python: Annotated[str, StringConstraints(pattern=r"^3\.[0-9]{1,2}$")]
    packages: tuple[Word, ...] = Field(min_length=1)
    applets: tuple[Word, ...] = ()
    links: dict[Word, Word] = Field(default_factory=dict)
    linker_cache: bool = False
    wheels: FileName
    requirements: str = Field(min_length=1, repr=False)
    environment: dict[VariableName, VariableValue]
    user: Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,8}:[1-9][0-9]{0,8}$")]
    default_gpus: Annotated[str, StringConstraints(pattern=r"^(none|[1-9][0-9]?)$")] = "none"
    check: tuple[str, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _locked(self) -> Self:
        lines = [line for line in self.requirements.splitlines() if not line.lstrip().startswith("#")]
        text = "\n".join(lines)
        if re.search(r"://|^\s*(-i\b|-f\b|--(extra-)?index-url|--find-links|--trusted-host)", text, re.MULTILINE):
            raise ValueError("the lock file names an index or a URL; only pinned names and hashes belong there")
        if "--hash=sha256:" not in text:
            raise ValueError("the lock file has no sha256 hashes")
        return self

    @property
    def digest(self) -> str:
        """SHA-256 (64 hex digits) of everything the recipe says, the lock file's text included."""
        return fingerprint(self.model_dump(mode="json"))

    @property
    def uid(self) -> int:
        """The user's number."""
        return int(self.user.partition(":")[0])

    @property
    def gid(self) -> int:
        """The group's number."""
        return int(self.user.partition(":")[2])


def fingerprint(value: object) -> str:
    """SHA-256 (64 hex digits) of a JSON value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def available(folder: Path = RECIPES) -> list[str]:
    """The names of all recipes, sorted."""
    return sorted(path.parent.name for path in folder.glob("*/recipe.toml"))


def require_known(name: str, folder: Path = RECIPES) -> None:
    """Raise UsageError, with the nearest name, unless there is a recipe `name`."""
    names = available(folder)
    if name in names:
        return
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    suggestion = f"did you mean {near[0]!r}? " if near else ""
    raise UsageError(f"no image recipe {name!r}", hint=f"{suggestion}available: {', '.join(names) or 'none'}")


def load_recipe(name: str, folder: Path = RECIPES) -> Recipe:
    """Read and check the recipe `name`.

    Raises UsageError for an unknown name (with the nearest one) and for a recipe or lock file that
    cannot be read or that says something unknown.
    """
    require_known(name, folder)  # first: only a listed name ever becomes a path
    path = folder / name / "recipe.toml"
    try:
        data = _read(path)
        data["requirements"] = (path.parent / Path(str(data.get("wheels"))).name).read_text(encoding="utf-8")
        recipe = Recipe.model_validate(data)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"image recipe {name!r} cannot be read: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "recipe"
        raise UsageError(f"image recipe {name!r}: {where}: {first['msg']}") from error
    if recipe.name != name:
        raise UsageError(f"image recipe {name!r} calls itself {recipe.name!r}", hint="name = the folder's name")
    return recipe


def _read(path: Path, depth: int = 0) -> dict[str, Any]:
    """The table in `path` over the one that it extends, with the check's program in place of its file's name."""
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    if (check := data.pop("check_file", None)) is not None:
        data["check"] = ["python", "-c", (path.parent / Path(str(check)).name).read_text(encoding="utf-8")]
    extended = data.pop("extends", None)
    if extended is None:
        return data
    if depth or extended not in available(path.parents[1]):
        raise UsageError(f"image recipe {path.parent.name!r}: extends = {extended!r} names no recipe that stands alone")
    under = _read(path.parents[1] / extended / path.name, depth + 1)
    packages = sorted({*under.get("packages", []), *data.get("packages", [])})
    variables = {**under.get("environment", {}), **data.get("environment", {})}
    return {**under, **data, "packages": packages, "environment": variables}

"""Where policies come from: the built-in ceiling and presets, the machine owner's files, files that are named."""

from __future__ import annotations

import difflib
import os
import stat
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from arsandbox.policies.meet import Layer
from arsandbox.policies.model import ISOLATION, LARGEST, Limits, Policy, PolicyFile
from arsandbox.policies.rules import EVERYTHING
from arsandbox.sandbox.errors import UsageError

OWNER_FILE = Path("/etc/arsandbox/policy.toml")
OWNER_VARIABLE = "ARSANDBOX_POLICY"
PRESETS = ("default", "strict", "gpu", "prepare", "evaluate", "propose")
# The preset that a stage gets where nobody asks for anything else.
_OF_STAGE = {"prepare": "prepare", "evaluate": "evaluate", "score": "evaluate", "propose": "propose"}
_LARGEST_FILE = 1024 * 1024


def ceiling(stage: str) -> Layer:
    """The loosest that `stage` can ever get: code that judges has no network, whoever asks."""
    return Layer("the built-in policy", _ceiling(stage in ("evaluate", "model", "score")))


@cache
def _ceiling(judges: bool) -> Policy:
    most = Limits(
        cpus=4096, memory_bytes=LARGEST, pids=4_194_304, disk_bytes=LARGEST, disk_inodes=LARGEST, tmp_bytes=LARGEST,
        shm_bytes=LARGEST, output_bytes=LARGEST, open_files=LARGEST, wall_s=2_592_000,
        vram_bytes=LARGEST,
    )  # fmt: skip
    return Policy(
        limits=most, network="none" if judges else "allowlist", hosts=(EVERYTHING,),
        private_hosts=(EVERYTHING,), gpus=4096, environment=(EVERYTHING,), mounts=("/",), caches=(EVERYTHING,),
        isolation=ISOLATION[0], enforced=(), promote_trust="L0", self_reported="on-request", editable=(), protected=(),
        patch_bytes=LARGEST, patch_files=LARGEST, artifact_bytes=LARGEST, artifact_files=LARGEST,
    )  # fmt: skip


def preset_of(stage: str) -> str:
    """The name of the preset for `stage`."""
    return _OF_STAGE.get(stage, "default")


@cache
def preset(name: str) -> PolicyFile:
    """The preset `name`. Raises UsageError for an unknown one."""
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"presets: {', '.join(PRESETS)}; or the path of a file"
        raise UsageError(f"there is no policy preset {name!r}", hint=hint)
    return parse((Path(__file__).parent / f"{name}.toml").read_text("utf-8"), f"preset {name}")


def named(text: str) -> tuple[str, PolicyFile]:
    """What `--policy TEXT` means, with its name as a source: a preset, or a file where there is a `/` or `.toml`."""
    if "/" in text or text.endswith(".toml"):
        return f"--policy {text}", read(Path(text))
    return f"--policy {text}", preset(text)


def owner_files() -> list[tuple[str, PolicyFile]]:
    """The machine owner's policies: both bind where both exist, so that no variable loosens the file."""
    found = []
    if OWNER_FILE.exists() or OWNER_FILE.is_symlink():
        _require_owned(OWNER_FILE)
        found.append((str(OWNER_FILE), read(OWNER_FILE)))
    variable = os.environ.get(OWNER_VARIABLE)
    if variable:
        found.append((f"{OWNER_VARIABLE} ({variable})", read(Path(variable))))
    return found


def read(path: Path) -> PolicyFile:
    """The policy file at `path`. Raises UsageError naming what is wrong and where."""
    try:
        if not path.is_file():
            raise UsageError(f"the policy {path} is not a file that can be read", hint="see docs/policies.md")
        with path.open("rb") as file:
            content = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise UsageError(f"the policy {path} cannot be read: {error.strerror}") from error
    if len(content) > _LARGEST_FILE:
        raise UsageError(f"the policy {path} is larger than a megabyte")
    try:
        return parse(content.decode("utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise UsageError(f"the policy {path} is not UTF-8 text") from error


def parse(text: str, where: str) -> PolicyFile:
    """The policy in the TOML `text`. Raises UsageError naming `where`, the key, and the nearest key."""
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, ValueError, RecursionError) as error:
        raise UsageError(f"{where}: not valid TOML: {error}") from error
    try:
        return PolicyFile.model_validate(table)
    except ValidationError as error:
        raise explained(error, where) from error


def explained(error: ValidationError, where: str) -> UsageError:
    """A refused policy table in one line."""
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        models: dict[bool, type[BaseModel]] = {True: Limits, False: PolicyFile}
        known = list(models["limits" in first["loc"]].model_fields)
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return UsageError(f"{where}: unknown key {key!r}", hint=hint)
    return UsageError(f"{where}: {key} = {_short(first['input'])}: {first['msg'].removeprefix('Value error, ')}")


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return "(too long to show)"
    return text if len(text) <= 200 else f"{text[:200]}..."


def _require_owned(path: Path) -> None:
    found = path.stat()
    if found.st_uid != 0 or stat.S_IMODE(found.st_mode) & 0o022:
        raise UsageError(
            f"{path} can be changed by others than root, so it is not the owner's word",
            hint=f"sudo chown root:root {path} && sudo chmod 644 {path}",
        )

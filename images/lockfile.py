"""Lock files: exact versions of wheels with the hashes that are allowed, and no place to get them from."""

from __future__ import annotations

import re
from dataclasses import dataclass

from packaging.requirements import InvalidRequirement, Requirement

from arsandbox.sandbox.errors import UsageError

_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})(?=\s|$)")


@dataclass(frozen=True)
class LockedWheel:
    """One entry: `requirement` is "name==version", `hashes` the SHA-256 (64 hex digits) of every wheel allowed."""

    requirement: str
    hashes: tuple[str, ...]


def locked_wheels(text: str, *, python: str, machine: str) -> tuple[LockedWheel, ...]:
    """The entries of the lock file `text` that count for `python` ("MAJOR.MINOR") on Linux on `machine`.

    Raises UsageError for an entry that is not an exact version with SHA-256 hashes.
    """
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    entries = "\n".join(lines).replace("\\\n", " ").splitlines()
    return tuple(
        wheel for entry in entries if entry.strip() and (wheel := _entry(entry, python=python, machine=machine))
    )


def _entry(entry: str, *, python: str, machine: str) -> LockedWheel | None:
    said, _, hashes = entry.partition("--hash=")
    try:
        requirement = Requirement(said.strip())
    except InvalidRequirement as error:
        raise UsageError(
            f"lock file: {said.strip()[:80]!r} is no requirement", hint=str(error).splitlines()[0]
        ) from None
    exact = [one.version for one in requirement.specifier if one.operator == "==" and not one.version.endswith("*")]
    found = tuple(_HASH.findall(f"--hash={hashes}"))
    if len(exact) != 1 or len(list(requirement.specifier)) != 1 or not found or requirement.url:
        raise UsageError(f"lock file: {said.strip()[:80]!r} needs one exact version and sha256 hashes")
    place = {
        "python_version": python,
        "platform_machine": machine,
        "sys_platform": "linux",
        "platform_system": "Linux",
        "os_name": "posix",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }
    if requirement.marker is not None and not requirement.marker.evaluate(place):
        return None
    return LockedWheel(f"{requirement.name}=={exact[0]}", found)

"""What a run compiled: kept beside a winner's artifacts, and adopted into a cache by the user's command alone."""

from __future__ import annotations

from pathlib import Path

from arsandbox.sandbox.bench import Measurement
from arsandbox.sandbox.caches.kinds import WORKSPACE_FOLDER
from arsandbox.sandbox.caches.store import CacheStore, CacheVersion
from arsandbox.sandbox.engines.port import Sandbox
from arsandbox.sandbox.errors import MachineError, RefusedError, UsageError
from arsandbox.sandbox.models import Stage
from arsandbox.sandbox.record import Record
from arsandbox.sandbox.settings import Settings

_KEPT = "compiled"


def collect(settings: Settings, sandbox: Sandbox, into: Measurement) -> None:
    """Copy what the run left in its compiled caches out of its workspace, within the bounds of artifacts."""
    names = [one.name for one in settings.caches_for(Stage.TRAIN) if one.layer is not None]
    if not names or into.artifact_directory is None:
        return
    into.compiled_directory = into.artifact_directory.with_suffix(".compiled")
    into.compiled_directory.mkdir()
    policy = settings.policy
    collected = sandbox.collect(
        [f"{WORKSPACE_FOLDER}/{name}" for name in names],
        into.compiled_directory,
        most_bytes=policy.artifact_bytes,
        most_files=policy.artifact_files,
    )
    for refusal in collected.refused[:10]:
        into.remark("artifact_refused", refusal)


def keep(seen: Measurement, place: Path) -> None:
    """Keep it in the experiment's directory `place`; a loser's goes with its run."""
    directory = seen.compiled_directory
    if directory is not None and directory.exists() and not (place / _KEPT).exists():
        directory.rename(place / _KEPT)


def adopt(name: str, record: Record, place: Path) -> tuple[CacheVersion, int]:
    """A new version of the cache `name` with what the promoted experiment `record` compiled; `place` is its directory.

    Returns it and how many files came. Raises RefusedError where nothing was promoted, UsageError where the experiment
    did not see the cache, MachineError where nothing is kept of it, and what the store raises.
    """
    if record.promotion is None:
        raise RefusedError(
            f"{record.id} was not promoted ({record.verdict.value}): what it compiled is not adopted",
            hint="arsandbox history lists what was",
        )
    if name not in {one.name for one in record.caches}:
        raise UsageError(f"{record.id} did not see the cache {name!r}", hint="arsandbox show ID --json lists `caches`")
    compiled = place / _KEPT / WORKSPACE_FOLDER / name
    if not compiled.is_dir():
        raise MachineError(f"nothing that {record.id} compiled for {name} is kept")
    return CacheStore().adopt(name, compiled, origin=f"compiled by {record.id}")

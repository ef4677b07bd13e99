"""The prepare stage's outputs: made once per set of fixed files, frozen by digest, split in two.

What `evaluate.data` names goes into a layer that only the evaluation mounts; the rest into one that
training sees too. The seed that the prepare stage got is never told to any other stage.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from arsandbox.sandbox import state
from arsandbox.sandbox.canonical import digest
from arsandbox.sandbox.egress.destinations import Allowlist
from arsandbox.sandbox.engines.port import Engine
from arsandbox.sandbox.errors import MachineError, RefusedError, StateError
from arsandbox.sandbox.events import Listener
from arsandbox.sandbox.models import EgressReport, ImageRef, Reason, Stage
from arsandbox.sandbox.objects import ObjectStore
from arsandbox.sandbox.record import StageRecord
from arsandbox.sandbox.run_directory import RunDirectory
from arsandbox.sandbox.settings import Settings
from arsandbox.sandbox.stage import StagePlan, run_stage
from arsandbox.sandbox.workspace.frozen import digests, require_equal
from arsandbox.sandbox.workspace.layers import LayerStore, is_below
from arsandbox.sandbox.workspace.upper import remove_tree, shown


@dataclass(frozen=True)
class PreparedData:
    """Layers with prepared data: `visible` for every stage, `heldout` for the evaluation alone.

    `stage` is the record of the stage that made them (None where an earlier version did).
    """

    sha256: str
    visible: Path
    heldout: Path
    stage: StageRecord | None = None


def fixed_tree(objects: ObjectStore, base: str, settings: Settings, cache: Path) -> tuple[str, tuple[str, ...]]:
    """(digest of every file of `base` that no candidate may change, the editable paths of `base`).

    Cached by tree in `cache`, since listing a large tree costs more than everything else. Raises StateError.
    """
    tree, rules = objects.tree_of(base), settings.rules
    name = hashlib.sha256(repr((tree, rules.editable, rules.protected, rules.bounds)).encode()).hexdigest()[:40]
    file = state.make_private(cache) / f"{name}.json"
    try:
        known, editable = json.loads(file.read_text())
        return str(known), tuple(map(str, editable))
    except (OSError, ValueError, TypeError):
        pass  # not known yet
    rows, paths = hashlib.sha256(), []
    for entry in objects.entries(tree):
        if rules.is_editable(entry.path):
            paths.append(entry.path)
        else:
            rows.update(f"{entry.mode} {entry.blob} {entry.path}\0".encode("utf-8", "surrogateescape"))
    with _writing(cache):
        # A name of its own: the rounds of a loop, threads of one process, may ask at the same time.
        with tempfile.NamedTemporaryFile("w", dir=cache, prefix=f"{name}.", delete=False) as fresh:
            fresh.write(json.dumps([rows.hexdigest(), paths]))
        os.rename(fresh.name, file)
    return rows.hexdigest(), tuple(paths)


def ensure(
    engine: Engine,
    layers: LayerStore,
    settings: Settings,
    *,
    base: str,
    fixed: tuple[str, tuple[str, ...]],
    image: ImageRef,
    directory: Path,
    run: RunDirectory,
    listener: Listener,
) -> PreparedData | None:
    """The prepared data for `base`, from the cache or by running the prepare stage; None without one.

    Raises RefusedError when the prepare stage fails or leaves an output out, StateError where it cannot be kept.
    """
    plan = settings.project.prepare
    if plan is None:
        return None
    caches = settings.caches_for(Stage.PREPARE)
    key = digest({
        "fixed": fixed[0], "image": image.digest, "prepare": plan.model_dump(mode="json"),
        "environment": settings.project.environment, "heldout": list(settings.heldout),
        **({"caches": [[one.name, one.sha256] for one in caches]} if caches else {}),
        **({"mounts": list(settings.project.mounts)} if settings.project.mounts else {}),
    })  # fmt: skip
    home = state.make_private(directory)
    with state.exclusive(home / "lock", seconds=plan.timeout + 60):
        target = home / key[:40]
        if not target.is_dir():
            with _writing(home):
                for left in home.glob("preparing-*"):  # we hold the lock: whoever made it is dead
                    remove_tree(str(left))
                fresh = Path(tempfile.mkdtemp(prefix="preparing-", dir=home))
            try:
                _run(
                    engine,
                    layers,
                    settings,
                    base,
                    fixed[1],
                    image,
                    fresh,
                    run,
                    listener,
                )
                with _writing(home):
                    (fresh / "key").write_text(key)
                    fresh.rename(target)
            finally:
                shutil.rmtree(fresh, ignore_errors=True)
    return _opened(target)[0]


def find(directory: Path, sha256: str) -> PreparedData:
    """The prepared data with that digest, every file read and compared.

    Raises MachineError when it is gone, RefusedError when a file has changed.
    """
    for manifest in sorted(directory.glob("*/manifest.json")):
        if manifest.parent.name.startswith("preparing-"):
            continue
        try:
            data, files = _opened(manifest.parent)
        except StateError:  # damaged: if it is the one, it is as good as gone
            continue
        if data.sha256 == sha256:
            visible, heldout = digests(data.visible), digests(data.heldout)
            require_equal({**visible, **heldout}, files, f"the prepared data {sha256[:12]}")
            if visible.keys() & heldout.keys() or digest([list(row) for row in sorted(files.items())]) != sha256:
                raise RefusedError(f"the prepared data {sha256[:12]} was changed: its manifest")
            return data
    raise MachineError(
        f"the prepared data {sha256[:12]} of that record is gone", hint="run the experiment anew: arsandbox run"
    )


@contextmanager
def _writing(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StateError(
            f"cannot keep data in {directory}: {error.strerror}", hint="free some space there, and see who owns it"
        ) from error


def _opened(target: Path) -> tuple[PreparedData, dict[str, str]]:
    try:
        manifest = json.loads((target / "manifest.json").read_text())
        files = {str(path): str(digest) for path, digest in manifest["files"].items()}
        stage = StageRecord.model_validate(manifest["stage"]) if manifest.get("stage") else None
        return PreparedData(str(manifest["sha256"]), target / "visible", target / "heldout", stage), files
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StateError(f"the prepared data in {target} is damaged", hint=f"rm -r {target}") from error


def _run(
    engine: Engine, layers: LayerStore, settings: Settings, base: str, editable: tuple[str, ...], image: ImageRef,
    fresh: Path, place: RunDirectory, listener: Listener,
) -> None:  # fmt: skip
    plan = settings.project.prepare
    assert plan is not None  # noqa: S101 - the caller has looked
    for output in plan.outputs:
        if shown(os.fsencode(output)) != output:
            raise RefusedError(
                f"[prepare] outputs: {shown(os.fsencode(output))} is a name that cannot be shown as it is"
            )
    heldout = settings.heldout
    seed = secrets.randbits(31)
    stack = (
        *layers.hiding(editable).paths,
        *layers.only(base, heldout).paths,
        *layers.layers(base, without=heldout).paths,
    )
    listener.note("preparing data (once for this base)")
    policy = settings.policy_for(Stage.PREPARE)
    stage = StagePlan(
        stage=Stage.PREPARE,
        image=image,
        command=plan.command,
        environment={**settings.environment_for(Stage.PREPARE), "ARSANDBOX_SEED": str(seed), "PYTHONHASHSEED": "0"},
        layers=stack,
        limits=policy.limits,
        mounts=settings.mounts_for(Stage.PREPARE),
        limit_s=plan.timeout,
        log=fresh / "prepare.log",
        egress=Allowlist.of(policy),
    )
    labels = place.labels(plan.timeout)
    with run_stage(engine, stage, experiment=place.id, scratch=place.scratch, labels=labels, listener=listener) as run:
        ended = run.outcome.termination
        if ended.reason is not Reason.COMPLETED:
            with _writing(fresh):
                tail = (fresh / "prepare.log").read_bytes()[-2000:].decode("utf-8", "replace").strip().splitlines()
            raise RefusedError(
                f"the prepare stage failed ({ended.reason.value}): {ended.detail}{_refused(run.record.egress)}",
                hint=state.printable(tail[-1]) if tail else "it printed nothing",
            )
        collected_root = fresh / "collected"
        with _writing(fresh):
            collected_root.mkdir()
        with _writing(fresh):
            collected = run.sandbox.collect(
                plan.outputs, collected_root, most_bytes=policy.artifact_bytes, most_files=policy.artifact_files
            )
    if collected.refused:
        raise RefusedError(f"the prepare stage left something that cannot be frozen: {collected.refused[0]}")
    for output in plan.outputs:
        if not any(is_below(path, [output]) for path in collected.files):
            raise RefusedError(f"the prepare stage left nothing at {output}", hint="see [prepare] outputs")
    rows = sorted(collected.files.items())
    manifest = {
        "sha256": digest([list(row) for row in rows]), "files": dict(rows), "seed": seed,
        "stage": run.record.model_dump(mode="json"),
    }  # fmt: skip
    with _writing(fresh):
        _split(collected_root, fresh, collected.files, heldout)
        (fresh / "manifest.json").write_text(json.dumps(manifest, indent=1))


def _refused(egress: EgressReport | None) -> str:
    """The first request that its proxy refused, as a reader would look for it."""
    for row in egress.refused() if egress is not None else ():
        return state.printable(f"; its proxy refused {row.host}:{row.port} ({row.decision.value})")
    return ""


def _split(source: Path, target: Path, files: Iterable[str], heldout: tuple[str, ...]) -> None:
    for name in ("visible", "heldout"):
        (target / name).mkdir()
        (target / name).chmod(0o777)
    for path in files:
        root = target / ("heldout" if is_below(path, heldout) else "visible")
        place = root / path
        for parent in reversed(place.relative_to(root).parents):
            (root / parent).mkdir(exist_ok=True)
            (root / parent).chmod(0o777)
        (source / path).rename(place)
        place.chmod(0o666)
    shutil.rmtree(source)

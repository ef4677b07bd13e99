"""Finish what dead controllers left: sandboxes, mounts, directories, open experiments, half promotions.

An experiment's controller holds the lock in its run directory for as long as it lives. Whoever can
take it knows that the controller is dead; everything here may be repeated, and stopped at any line.
Run directories appear with their lock, and go with it, while a lock beside them is held, so that none is
ever seen without an owner that lives.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from arsandbox.images.scratch import folders
from arsandbox.sandbox import host, objects, promotion, scratch, state
from arsandbox.sandbox.engines.port import Engine
from arsandbox.sandbox.engines.registry import names, open_engine
from arsandbox.sandbox.errors import ArsandboxError, MachineError, UsageError
from arsandbox.sandbox.ledger import Ledger
from arsandbox.sandbox.models import Finding, Verdict, utc_now
from arsandbox.sandbox.record import Record
from arsandbox.sandbox.repository import OBJECTS, Repository
from arsandbox.sandbox.workspace.overlay import unmount_below
from arsandbox.sandbox.workspace.upper import remove_tree


def recover(repository_state: Path, engine: Engine) -> list[str]:
    """Clean up after every dead controller of one repository; returns what was done, a line each.

    Raises MachineError when the engine cannot be asked, StateError for a damaged ledger.
    """
    done: list[str] = []
    runs = state.make_private(repository_state / "runs")
    for directory in sorted(runs.iterdir()):
        lock = _lock_of_the_dead(directory)
        if lock is None:
            continue
        try:
            done += _clean_up(repository_state, directory, engine)
        finally:
            lock.close()
    with Ledger.open(repository_state) as ledger:
        for draft in ledger.open_experiments():
            if not (runs / draft.id).exists():
                done += _close_record(repository_state, draft.id)
    return done


def _clean_up(repository_state: Path, directory: Path, engine: Engine) -> list[str]:
    """The record first, for which no engine is needed; then the sandbox, on the engine that made it; then the rest."""
    name = directory.name
    with Ledger.open(repository_state) as ledger:
        made_by = ledger.engine_of(name)
    done = _close_record(repository_state, name)
    if made_by is not None and made_by != engine.info().name:
        try:
            engine = open_engine(made_by)
        except (MachineError, UsageError) as error:
            # Its directory stays, and with it the reason to look again.
            return [*done, f"experiment {name}: what it left on the engine {made_by} stays for now: {error.message}"]
    done += engine.sweep({host.EXPERIMENT_LABEL: name, host.HOME_LABEL: host.home_id()})
    done += [f"mount {point}" for point in unmount_below(directory)]
    return [*done, _remove_of_the_dead(directory, lambda path: remove_run(Path(path)))]


@contextmanager
def entering_or_leaving(repository_state: Path) -> Iterator[None]:
    """Hold what everybody holds who makes, takes over or removes a run directory's lock: for a moment only."""
    with state.exclusive(state.make_private(repository_state) / "runs.lock"):
        yield


def remove_run(directory: Path) -> None:
    """Remove an experiment's run directory, whose lock the caller holds; repeatable."""
    unmount_below(directory)
    if not directory.exists():
        return  # the whole state directory was removed under the run
    for child in directory.iterdir():
        if child.name != "lock":
            remove_tree(str(child))
    with entering_or_leaving(directory.parent.parent):
        remove_tree(str(directory))


def _lock_of_the_dead(directory: Path) -> state.Lock | None:
    """The lock of a run directory whose owner is dead; None where it lives, or has just removed it."""
    with entering_or_leaving(directory.parent.parent):
        return state.Lock.try_take(directory / "lock") if directory.exists() else None


def _remove_of_the_dead(directory: Path, remove: Callable[[str], None]) -> str:
    try:
        remove(str(directory))
    except PermissionError:
        # Without root a helper that died half-way may leave files of root's: harmless, and said each time.
        return f"directory {directory}: holds files of root's (sudo rm -r {directory})"
    return f"directory {directory}"


def collect_garbage(engine: Engine) -> list[str]:
    """`recover` for every repository, then whatever else bears the label of a dead run, on every engine there is."""
    done: list[str] = []
    repositories = state.home() / "repos"
    known = sorted(repositories.iterdir()) if repositories.is_dir() else []
    for directory in known:
        done += recover(directory, engine)
    engines = (engine, *_others(engine))
    unfinished = [place for directory in known for place in objects.unfinished(directory / OBJECTS)]
    for place in scratch.abandoned(*folders(state.home() / "image-layers"), *unfinished):
        for one in engines:
            owner = {host.EXPERIMENT_LABEL: scratch.identity_of(place), host.HOME_LABEL: host.home_id()}
            done += one.sweep(owner)
        done += [f"mount {point}" for point in unmount_below(place)]
        done.append(_remove_of_the_dead(place, remove_tree))
    for one in engines:
        labelled = one.labelled(host.EXPERIMENT_LABEL)
        # Looked up after the labels: what bears one had its directory before that.
        alive = {run.name for run in repositories.glob("*/runs/*")} | scratch.identities()
        for experiment in sorted(labelled - alive):
            done += one.sweep({host.EXPERIMENT_LABEL: experiment, host.HOME_LABEL: host.home_id()})
    for directory in known:
        for left in (directory / "layers").glob("building-*"):
            with state.exclusive(directory / "layers" / "lock"):
                shutil.rmtree(left, ignore_errors=True)
    return done


def _others(engine: Engine) -> Iterator[Engine]:
    """The installed engines that can be used here beside `engine`."""
    for name in names():
        if name != engine.info().name:
            try:
                yield open_engine(name)
            except MachineError:
                continue  # nothing can be asked of it, and its absence is no news to who asked for another


def finish_promotion(ledger: Ledger, experiment: str) -> str | None:
    """Complete the promotion that was noted for `experiment`, or record the winner without it.

    Returns what was done in one line, None where no promotion was noted. Idempotent.
    """
    intent = ledger.intent(experiment)
    return None if intent is None else _finished(ledger, intent.record, intent.old_commit)


def _close_record(repository_state: Path, experiment: str) -> list[str]:
    with Ledger.open(repository_state) as ledger:
        finished = finish_promotion(ledger, experiment)
        if finished is not None:
            return [finished]
        draft = next((d for d in ledger.open_experiments() if d.id == experiment), None)
        if draft is None:
            return []
        ledger.append(draft.model_copy(update={"finished_at": utc_now()}))
        return [f"experiment {experiment}: recorded as interrupted"]


def _finished(ledger: Ledger, record: Record, old_commit: str) -> str:
    """Move the ref that was meant to move, or record the winner without a promotion."""
    assert record.promotion is not None  # noqa: S101 - an intent is made of a record with one
    prepared = promotion.Prepared(record.promotion.commit, record.promotion.ref, old_commit)
    overtaken = False
    try:
        repository = Repository.open(Path(record.repo))
        if promotion.publish(repository, prepared):
            ledger.append(record)
            return f"experiment {record.id}: promotion to {prepared.ref} completed"
        why = "the branch has moved since"
        overtaken = record.branch not in repository.checked_out_branches()
    except ArsandboxError as error:
        why = error.message
    unpromoted = record.model_copy(update={"promotion": None, "reason": f"{record.reason}; not promoted: {why}"})
    ledger.append(_as_a_living_controller_had(unpromoted) if overtaken else unpromoted)
    return f"experiment {record.id}: not promoted: {why}"


def _as_a_living_controller_had(record: Record) -> Record:
    """The record of a winner in whose champion's place another one was promoted: it is to be measured on that one."""
    if record.confirms is not None:
        return record.model_copy(update={"verdict": Verdict.INTERRUPTED})
    finding = Finding(code="champion_moved", detail="another candidate was promoted meanwhile")
    return record.model_copy(update={"verdict": Verdict.PENDING, "findings": (*record.findings, finding)})

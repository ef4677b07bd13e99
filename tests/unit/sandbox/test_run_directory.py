"""Run directories under recovery: nobody's run is taken for a dead one while it begins or ends."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arsandbox.sandbox import recovery, state
from arsandbox.sandbox.engines.fake import FakeEngine, Fault
from arsandbox.sandbox.errors import ArsandboxError, MachineError
from arsandbox.sandbox.run_directory import run_directory


def test_a_directory_that_was_just_made_is_never_seen_without_its_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between mkdir and flock another controller's recovery may look: it must wait, not take the lock."""
    place = state.make_private(tmp_path / "repository")
    found: list[list[str]] = []
    recovering = threading.Thread(target=lambda: found.append(recovery.recover(place, FakeEngine())))
    make, started = state.make_private, threading.Event()

    def make_and_wait(path: Path) -> Path:
        made = make(path)
        if path.parent.name == "runs" and not started.is_set():
            started.set()
            recovering.start()
            recovering.join(0.5)  # ample time to take a lock that is free
        return made

    monkeypatch.setattr(state, "make_private", make_and_wait)
    with run_directory(place) as run:
        recovering.join(30)
        assert started.is_set() and found == [[]]
        assert (run.scratch / "lock").exists()
        assert state.Lock.try_take(run.scratch / "lock") is None
    assert list((place / "runs").iterdir()) == []


def test_a_directory_that_is_being_removed_is_left_to_its_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the owner removes first, recovery never puts a new lock into a directory that is about to go."""
    place = state.make_private(tmp_path / "repository")
    remove, found = recovery.remove_tree, []

    def remove_and_look(path: str) -> None:
        if Path(path).parent.name == "runs":
            looking = threading.Thread(target=lambda: found.append(recovery.recover(place, FakeEngine())))
            looking.start()
            looking.join(0.3)
            remove(path)
            return
        remove(path)
        found.append(recovery.recover(place, FakeEngine()))

    monkeypatch.setattr(recovery, "remove_tree", remove_and_look)
    with run_directory(place) as run:
        (run.scratch / "left").mkdir()
    assert list((place / "runs").iterdir()) == []
    assert found and all(one == [] for one in found)


def test_recovery_and_short_runs_side_by_side(tmp_path: Path) -> None:
    """Many runs begin and end while others recover: no error, and nobody's work is undone."""
    place = state.make_private(tmp_path / "repository")
    problems: list[str] = []

    def guarded(work: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            try:
                for _ in range(40):
                    problems.extend(work() or [])
            except (ArsandboxError, AssertionError, OSError) as error:
                problems.append(repr(error))

        return run

    def short() -> list[str]:
        with run_directory(place) as run:
            (run.scratch / "file").touch()
            return [] if (run.scratch / "lock").exists() else ["the lock is gone"]

    threads = [threading.Thread(target=guarded(short)) for _ in range(2)]
    threads += [threading.Thread(target=guarded(lambda: recovery.recover(place, FakeEngine()))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert list((place / "runs").iterdir()) == []


def test_what_a_dead_controller_left_is_removed(tmp_path: Path) -> None:
    place = state.make_private(tmp_path / "repository")
    for name in ("20240102-030405-678-aaaaaa", "20240102-030405-678-bbbbbb"):
        left = state.make_private(place / "runs" / name)
        (left / "train" / "upper").mkdir(parents=True)
    (left / "lock").touch()  # the other one died before, or after, it had one
    done = recovery.recover(place, FakeEngine())
    assert [line.partition(" ")[0] for line in done] == ["directory", "directory"]
    assert list((place / "runs").iterdir()) == [] and recovery.recover(place, FakeEngine()) == []


def test_a_run_outlives_the_removal_of_the_whole_state_directory(tmp_path: Path) -> None:
    import shutil

    place = state.make_private(tmp_path / "repository")
    with run_directory(place):
        shutil.rmtree(place)
    assert not place.exists()


def test_what_an_engine_that_died_still_holds_is_swept_by_the_next_recovery(tmp_path: Path, fake_loop: Any) -> None:
    """The controller lives and ends its run, but its engine cannot remove the sandbox."""
    made = fake_loop()
    made.offer({"1": "raise\n"})
    engine = FakeEngine(faults=[Fault(call="exit")], isolation="container")
    with pytest.raises(MachineError, match="a scripted fault"):
        made.rounds(engine=engine)
    held = engine.labelled("arsandbox.experiment")
    runs = made.repository.state / "runs"
    assert held < {run.name for run in runs.iterdir()} and len(held) == 1  # the run that asked for the baseline, too
    done = recovery.recover(made.repository.state, engine)
    assert f"sandbox {held.pop()}" in done
    assert engine.labelled("arsandbox.experiment") == set() and list(runs.iterdir()) == []


def test_a_directory_that_cannot_be_removed_is_left_to_the_next_recovery_of_a_controller_that_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = state.make_private(tmp_path / "repository")

    def busy(path: str) -> None:
        raise OSError(16, "Device or resource busy", path)

    with monkeypatch.context() as patched, pytest.raises(OSError, match="busy"), run_directory(place) as run:
        (run.scratch / "file").touch()
        patched.setattr(recovery, "remove_tree", busy)
    assert run.scratch.exists()
    assert recovery.recover(place, FakeEngine()) == [f"directory {run.scratch}"]

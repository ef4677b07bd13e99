"""The state directory, ids, and locks that die with their owner."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arsandbox.sandbox import state
from arsandbox.sandbox.errors import StateError, UsageError

FORK = multiprocessing.get_context("fork")


def test_home_is_made_private(arsandbox_home: Path) -> None:
    assert state.home() == arsandbox_home
    assert stat.S_IMODE(arsandbox_home.stat().st_mode) == 0o700


def test_home_without_a_setting_follows_xdg_and_then_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ARSANDBOX_HOME")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    assert state.home() == tmp_path / "xdg" / "arsandbox"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    assert state.home() == tmp_path / "user" / ".local" / "state" / "arsandbox"


@pytest.mark.parametrize("bad", ["a b", "a,b", "a:b", "a\\b", "a\nb", "a\tb", 'a"b'])
def test_a_home_that_mount_options_cannot_hold_is_refused(
    bad: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARSANDBOX_HOME", str(tmp_path / bad))
    with pytest.raises(UsageError) as caught:
        state.home()
    assert "ARSANDBOX_HOME" in caught.value.hint
    assert not (tmp_path / bad).exists()


def test_a_relative_home_is_taken_from_here_and_absolute_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ARSANDBOX_HOME", "here")
    assert state.home() == tmp_path / "here"


@pytest.mark.parametrize("kind", ["file", "dangling"])
def test_a_home_with_something_in_the_way_is_a_state_error(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "taken"
    if kind == "file":
        place.write_text("")
    else:
        place.symlink_to(tmp_path / "nowhere")
    monkeypatch.setenv("ARSANDBOX_HOME", str(place))
    with pytest.raises(StateError):
        state.home()
    monkeypatch.setenv("ARSANDBOX_HOME", "/proc/no/such")
    with pytest.raises(StateError):
        state.home()


def test_make_private_makes_the_missing_parents_private_too(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        state.make_private(tmp_path / "one" / "two")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "one", tmp_path / "one" / "two")]
    assert modes == [0o700, 0o700]


def test_repository_state_differs_by_path_and_is_safe_as_a_name(tmp_path: Path) -> None:
    names = []
    for name in ("a", "b", "-x y;$(id)", "..é", "n" * 200):
        place = tmp_path / name / ".git"
        place.mkdir(parents=True)
        names.append(state.repository_state(place).name)
        assert state.repository_state(place).name == names[-1]
    assert len(set(names)) == len(names)
    for name in names:
        assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,60}", name)


def test_repository_state_is_the_same_through_a_symlink(tmp_path: Path) -> None:
    (tmp_path / "real" / ".git").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    assert state.repository_state(tmp_path / "link" / ".git") == state.repository_state(tmp_path / "real" / ".git")


def test_experiment_ids_sort_by_time_differ_and_are_safe_names(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for now in (1_700_000_000.001, 1_700_000_000.999, 1_700_000_001.0, 1_800_000_000.5):
        monkeypatch.setattr(state.time, "time", lambda now=now: now)
        found.append(state.new_experiment_id())
    assert found == sorted(found)
    assert all(re.fullmatch(r"\d{8}-\d{6}-\d{3}-[0-9a-f]{6}", identity) for identity in found)
    assert len({state.new_experiment_id() for _ in range(200)}) == 200


@given(st.text())
def test_printable_holds_no_control_character_and_keeps_ordinary_text(text: str) -> None:
    shown = state.printable(text)
    assert shown == "".join(shown.split("\n")) and "\x1b" not in shown and shown.isprintable()
    assert state.printable(shown) == shown


def test_printable_drops_escapes_and_direction_marks() -> None:
    assert state.printable("a\x1b[2Jb\r\n\u202ec\u200bd\x9b") == "a[2Jbcd"


def test_a_lock_is_exclusive_until_it_is_closed(tmp_path: Path) -> None:
    first = state.Lock.try_take(tmp_path / "lock")
    assert first is not None
    assert state.Lock.try_take(tmp_path / "lock") is None
    first.close()
    second = state.Lock.try_take(tmp_path / "lock")
    assert second is not None
    second.remove()
    assert not (tmp_path / "lock").exists()


def test_a_lock_never_follows_a_symlink(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "victim")
    with pytest.raises(StateError):
        state.Lock.try_take(tmp_path / "lock")
    assert not (tmp_path / "victim").exists()


def test_a_lock_in_a_directory_that_is_gone_is_a_state_error(tmp_path: Path) -> None:
    with pytest.raises(StateError):
        state.Lock.try_take(tmp_path / "none" / "lock")


def test_a_lock_dies_with_its_process(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from arsandbox.sandbox.state import Lock\n"
        "lock = Lock.try_take(Path(sys.argv[1])); print('held' if lock else 'none', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "lock")], stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None and owner.stdout.readline() == "held\n"
        assert state.Lock.try_take(tmp_path / "lock") is None
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    lock = state.Lock.try_take(tmp_path / "lock")
    assert lock is not None
    lock.close()


def test_a_lock_is_not_inherited_by_programs_that_are_started(tmp_path: Path) -> None:
    lock = state.Lock.try_take(tmp_path / "lock")
    assert lock is not None
    with subprocess.Popen(["sleep", "60"], close_fds=False) as child:
        lock.close()
        again = state.Lock.try_take(tmp_path / "lock")
        child.kill()
    assert again is not None
    again.close()


def test_a_lock_that_is_given_back_is_free_also_while_a_child_has_not_come_to_its_exec(tmp_path: Path) -> None:
    """Another thread starts a program: until its exec the child has the descriptor too."""
    lock = state.Lock.try_take(tmp_path / "lock")
    assert lock is not None
    ready, done = FORK.Event(), FORK.Event()

    def child() -> None:
        ready.set()
        done.wait(30)

    process = FORK.Process(target=child)
    process.start()
    assert ready.wait(30)
    lock.close()
    again = state.Lock.try_take(tmp_path / "lock")
    done.set()
    process.join()
    assert again is not None
    again.close()


def test_a_lock_on_a_file_that_was_removed_meanwhile_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owner removes the file between our open and our flock: we must lock the new file, not the ghost."""
    path = tmp_path / "lock"
    real, calls = state.fcntl.flock, []

    def flock(descriptor: int, operation: int) -> None:
        calls.append(descriptor)
        if len(calls) == 1:
            path.unlink()
        real(descriptor, operation)

    monkeypatch.setattr(state.fcntl, "flock", flock)
    lock = state.Lock.try_take(path)
    assert lock is not None and len(calls) == 2 and path.exists()
    monkeypatch.setattr(state.fcntl, "flock", real)
    assert state.Lock.try_take(path) is None
    lock.close()


def _contend(path: Path, journal: Path, rounds: int) -> None:
    done = 0
    while done < rounds:
        lock = state.Lock.try_take(path)
        if lock is None:
            continue
        with journal.open("a") as file:
            file.write("in\n")
            file.flush()
            os.sched_yield()
            file.write("out\n")
        lock.remove() if done % 2 else lock.close()
        done += 1


def test_only_one_process_is_inside_even_when_the_file_is_removed_all_the_time(tmp_path: Path) -> None:
    processes = [FORK.Process(target=_contend, args=(tmp_path / "lock", tmp_path / "journal", 60)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert (tmp_path / "journal").read_text().split() == ["in", "out"] * 240


def test_exclusive_waits_and_then_gives_up_with_a_state_error(tmp_path: Path) -> None:
    with (
        state.exclusive(tmp_path / "lock"),
        pytest.raises(StateError, match="another"),
        state.exclusive(tmp_path / "lock", seconds=0.05),
    ):
        pass
    holder = state.Lock.try_take(tmp_path / "lock")
    assert holder is not None
    threading.Timer(0.1, holder.close).start()
    with state.exclusive(tmp_path / "lock", seconds=10):
        pass


def test_exclusive_gives_the_lock_back_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), state.exclusive(tmp_path / "lock"):
        raise KeyError
    with state.exclusive(tmp_path / "lock", seconds=0):
        pass

"""Scratch directories: gone with their owner, found when it was killed, never taken from a living one."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from arsandbox.images import scratch as images
from arsandbox.sandbox import recovery, scratch, state
from arsandbox.sandbox.engines.fake import FakeEngine

HOLDER = """
import sys, time
from pathlib import Path
from arsandbox.images.scratch import scratch_folder
from arsandbox.sandbox import state
from arsandbox.sandbox.scratch import scratch
with scratch("20240102-030405-678-aaaaaa") as place, scratch_folder(state.home() / "image-layers") as folder:
    (place / "file").touch()
    (folder / "file").touch()
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ARSANDBOX_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(scratch, "_SETTLED_S", 0.0)
    monkeypatch.setattr(recovery, "_others", lambda engine: iter(()))
    # Other builds of this machine have theirs in memory: not this test's to judge.
    monkeypatch.setattr(images, "MEMORY", tmp_path / "none")
    return tmp_path / "home"


def test_nothing_is_left_whatever_was_made(home: Path) -> None:
    with pytest.raises(KeyboardInterrupt), scratch.scratch(state.new_experiment_id()) as place:
        (place / "deep" / "er").mkdir(parents=True)
        assert scratch.identities() == {scratch.identity_of(place)} and place.stat().st_mode & 0o777 == 0o700
        raise KeyboardInterrupt
    assert list(home.iterdir()) == []


def test_gc_removes_what_a_killed_owner_left_and_nothing_of_a_living_one(home: Path, tmp_path: Path) -> None:
    program = f"from arsandbox.images import scratch\nimport pathlib\nscratch.MEMORY = pathlib.Path('/none')\n{HOLDER}"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        folder = Path(holder.stdout.readline().strip())
        place = home / "scratch-20240102-030405-678-aaaaaa"
        assert recovery.collect_garbage(FakeEngine()) == []
        assert (place / "file").exists() and (folder / "file").exists()
        holder.send_signal(signal.SIGKILL)
    assert recovery.collect_garbage(FakeEngine()) == [f"directory {place}", f"directory {folder}"]
    assert not place.exists() and not folder.exists() and recovery.collect_garbage(FakeEngine()) == []


def test_gc_removes_what_was_being_made_of_a_store_when_its_controller_died(home: Path) -> None:
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom arsandbox.sandbox import state\n"
        "place = Path(sys.argv[1])\nplace.mkdir(parents=True)\n"
        "with state.owned(place):\n    print('made', flush=True)\n    time.sleep(60)\n"
    )
    store = state.make_private(home / "repos" / "one") / "objects.git"
    made = [store.with_name("objects.git-x1"), store / "index-x1"]
    with ExitStack() as stack:
        for place in made:
            maker = stack.enter_context(
                subprocess.Popen([sys.executable, "-c", program, str(place)], stdout=subprocess.PIPE, text=True)
            )
            stack.callback(maker.kill)
            assert maker.stdout is not None and maker.stdout.readline() == "made\n"
        assert recovery.collect_garbage(FakeEngine()) == [] and all(place.exists() for place in made)
    assert recovery.collect_garbage(FakeEngine()) == [f"directory {place}" for place in made]
    assert not any(place.exists() for place in made)


def test_a_link_in_its_place_is_not_followed(home: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    (state.home() / "scratch-x").symlink_to(tmp_path / "mine")
    assert recovery.collect_garbage(FakeEngine()) == [] and (tmp_path / "mine" / "file").exists()

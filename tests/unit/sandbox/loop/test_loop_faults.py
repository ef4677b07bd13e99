"""A loop whose controller dies: at every step, at random moments, on a full disk, with its engine gone."""

from __future__ import annotations

import errno
import itertools
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from arsandbox.sandbox.engines.fake import Call, Fault
from arsandbox.sandbox.models import Verdict
from arsandbox.sandbox.steps import STEPS
from arsandbox_fixtures.drawn import seed_of_the_run
from arsandbox_fixtures.fake_loop import KILLED, FakeLoop, moments, timed, train

pytestmark = pytest.mark.timeout(600)
MakeLoop = Callable[..., FakeLoop]
GREEDY = {"1": train(9.0), "2": train(extra=2.0), "3": train(middle="raise SystemExit(1)")}
# Thirty and twenty sigma: nothing here is left to chance.
NOISY = {"1": train(extra=2.0), "2": train(7.0), "3": train(middle="raise SystemExit(1)")}
ENDS = {
    "greedy": {"1": Verdict.KEEP, "2": Verdict.DISCARD, "3": Verdict.CRASH},
    "confirm": {"1": Verdict.DISCARD, "2": Verdict.KEEP, "3": Verdict.CRASH},
}


def task(fake_loop: MakeLoop, rule: str, name: str = "repo") -> FakeLoop:
    made = fake_loop(rule=rule, noise=0.0 if rule == "greedy" else 0.1, name=name)
    made.offer(GREEDY if rule == "greedy" else NOISY)
    return made


def check_end(made: FakeLoop, rule: str) -> None:
    made.check(over=True)
    assert {name: record.verdict for name, record in made.ends().items()} == ENDS[rule]
    assert len([record for record in made.records() if record.promotion]) == 1
    assert {record.round.proposer for record in made.records() if record.round} == {"patches"}
    answer = "9.0" if rule == "greedy" else "7.0"
    assert f"ANSWER = {answer}" in made.made.git("show", "arsandbox/t:train.py")


def killed_and_resumed(made: FakeLoop, rule: str, die_at: str) -> bool:
    """Whether the loop died there; it is resumed, and must then be as if nothing had been."""
    ended = made.child(die_at=die_at)
    if ended.code == 0:
        return False
    assert ended.code == KILLED, ended
    made.check(over=False)
    made.until_done(ended)
    check_end(made, rule)
    return True


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_each_kind_of_step_and_resumed(step: str, fake_loop: MakeLoop) -> None:
    rule = "confirm" if step in ("paired", "confirmed") else "greedy"
    assert killed_and_resumed(task(fake_loop, rule), rule, step)


@pytest.mark.group("faults")
@pytest.mark.parametrize(("rule", "stride", "least"), [("greedy", 1, 25), ("confirm", 5, 100)])
def test_killed_at_every_single_step_and_resumed(rule: str, stride: int, least: int, fake_loop: MakeLoop) -> None:
    """Whichever step of whichever run it is; of the many of `confirm` every fifth."""
    for number in itertools.count(1, stride):
        if not killed_and_resumed(task(fake_loop, rule, f"repo-{number}"), rule, f"any:{number}"):
            break
    assert number > least


@pytest.mark.parametrize("seed", [1, *(pytest.param(n, marks=pytest.mark.group("faults")) for n in range(2, 13))])
def test_killed_again_and_again_at_random_moments(seed: int, fake_loop: MakeLoop) -> None:
    """SIGKILL whenever it comes: in git, in SQLite, in the middle of a write.

    The first seed draws the same moments in every run, the others of the group what the run's seed gives.
    """
    rule = "greedy" if seed % 2 else "confirm"
    whole = timed(task(fake_loop, rule, "timed").rounds)
    made, kills = task(fake_loop, rule), 0
    for seconds in moments(seed + (seed > 1) * seed_of_the_run(), 6, 0.7 * whole):
        ended = made.child(kill_after_s=seconds, resume=bool(made.journals()))
        kills += ended.code == -9
        made.check(over=False)
        if ended.code == 0:
            break
    assert kills, "nothing was killed: this seed shows nothing"
    made.until_done(made.child(resume=bool(made.journals())))
    check_end(made, rule)


@pytest.mark.parametrize(
    "call", ["run", *(pytest.param(c, marks=pytest.mark.group("faults")) for c in ("enter", "exit"))]
)
def test_the_engine_dies_in_the_middle_and_comes_back(call: Call, fake_loop: MakeLoop) -> None:
    made = task(fake_loop, "greedy")
    ended = made.child(faults=[Fault(call=call, nth=2)])
    assert ended.code == 4 and "a scripted fault" in ended.said, ended
    made.check(over=False)
    made.until_done(ended)
    check_end(made, "greedy")


def full(place: Path) -> None:
    """Leave no byte on the file system at `place`."""
    with (place / "filler").open("wb") as file:
        try:
            while True:
                file.write(bytes(65_536))
                file.flush()
        except OSError as error:
            assert error.errno == errno.ENOSPC
    with (place / "filler").open("ab") as file:  # what is left below a block of 64 KiB
        try:
            while True:
                os.write(file.fileno(), bytes(4096))
        except OSError as error:
            assert error.errno == errno.ENOSPC


@pytest.fixture
def small_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A state directory on a file system of its own, of 8 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=0700", "tmpfs", str(place)], check=True)
    monkeypatch.setenv("ARSANDBOX_HOME", str(place / "home"))
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
@pytest.mark.parametrize("moment", [3, *(pytest.param(n, marks=pytest.mark.group("faults")) for n in (1, 2, 4))])
def test_the_disk_is_full_in_the_middle(moment: int, fake_loop: MakeLoop, small_home: Path) -> None:
    made = task(fake_loop, "greedy")
    made.running = lambda number: full(small_home) if number == moment else None
    ended = made.child()
    assert ended.code == 5, ended
    assert re.search("full|No space|space", ended.said), ended
    (small_home / "filler").unlink()
    made.running = lambda number: None
    made.check(over=False)
    made.until_done(made.child(resume=bool(made.journals())))
    check_end(made, "greedy")

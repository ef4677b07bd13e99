"""Proposals that meet: each is put onto the champion of its own turn, and no win is lost or undone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from arsandbox.sandbox import hygiene
from arsandbox.sandbox.config import MeasurementConfig
from arsandbox.sandbox.engines.fake import FakeEngine, Script
from arsandbox.sandbox.engines.port import SandboxSpec
from arsandbox.sandbox.events import Silent
from arsandbox.sandbox.loop.bounds import Bounds
from arsandbox.sandbox.models import Stage, Verdict
from arsandbox.sandbox.record import Conditions, Record
from arsandbox_fixtures.fake_loop import KILLED, FakeLoop, play
from arsandbox_fixtures.waiting import wait_for

MakeLoop = Callable[..., FakeLoop]
FREE = "[measurement]\npin = false\n"
RULES = pytest.mark.parametrize("rule", ["greedy", "confirm"])
PARALLEL = pytest.mark.parametrize("parallel", [1, 2])


def text(answer: float = 0.0, extra: float = 0.0, *, note: str = "none", apart: int = 0) -> str:
    """A train.py whose loss is the sum of its two numbers, on neighbouring lines or `apart` lines apart."""
    return f"ANSWER = {answer}\n" + "pass\n" * apart + f"EXTRA = {extra}\nNOTE = '{note}'\n"


def task(fake_loop: MakeLoop, rule: str, base: str, **options: object) -> FakeLoop:
    made = fake_loop(rule=rule, noise=0.0 if rule == "greedy" else 0.1, config=FREE, **options)
    made.made.write({"train.py": base})
    made.made.commit("the task")
    return made


def tip(made: FakeLoop) -> str:
    return str(made.made.git("show", f"arsandbox/{made.tag}:train.py"))


def verdicts(made: FakeLoop) -> dict[str, str]:
    return {name: record.verdict.value for name, record in made.ends().items()}


def codes(record: Record) -> list[str]:
    return [finding.code for finding in record.findings]


@RULES
@PARALLEL
def test_numbers_on_neighbouring_lines_both_win(rule: str, parallel: int, fake_loop: MakeLoop) -> None:
    made = task(fake_loop, rule, text())
    made.offer({"1": text(answer=-10.0), "2": text(extra=-15.0)}, over=text())
    made.rounds(parallel=parallel)
    assert tip(made) == text(answer=-10.0, extra=-15.0).strip()
    assert verdicts(made) == {"1": "keep", "2": "keep"}
    made.check(over=True)


@RULES
@PARALLEL
def test_a_stacked_series_works(rule: str, parallel: int, fake_loop: MakeLoop) -> None:
    made = task(fake_loop, rule, text())
    made.offer({"1": text(answer=-10.0)}, over=text())
    made.offer({"2": text(answer=-20.0)}, over=text(answer=-10.0))
    made.offer({"3": text(answer=-30.0)}, over=text(answer=-20.0))
    made.rounds(parallel=parallel)
    assert tip(made) == text(answer=-30.0).strip()
    assert verdicts(made) == {"1": "keep", "2": "keep", "3": "keep"}
    assert [record.round.number for record in made.ends().values() if record.round] == [1, 2, 3]
    made.check(over=True)


def test_a_series_whose_first_part_loses_is_tried_again_at_the_end_and_said_to_conflict(fake_loop: MakeLoop) -> None:
    made = task(fake_loop, "greedy", text())
    made.offer({"1": text(answer=5.0)}, over=text())
    made.offer({"2": text(answer=-10.0)}, over=text(answer=5.0))
    made.offer({"3": text(extra=-1.0)}, over=text())
    heard: list[str] = []

    class Hearing(Silent):
        def note(self, text: str) -> None:
            heard.append(text)

    made.listener = Hearing()
    records = made.rounds()
    assert [record.description[:7] for record in records] == ["1.patch", "3.patch", "2.patch"]
    assert verdicts(made) == {"1": "discard", "3": "keep", "2": "rejected"}
    last = records[-1]
    assert codes(last) == ["edit_conflict"] and last.reason.startswith("it does not fit the champion")
    assert len([line for line in heard if "round 2" in line and "does not fit" in line]) == 1
    made.check(over=True)


def test_one_number_that_two_set_is_set_by_the_second_and_said(fake_loop: MakeLoop) -> None:
    """The second is what its edit says: it replaces the first where it is better than that, and else it loses."""
    made = task(fake_loop, "greedy", text())
    made.offer({"1": text(answer=-10.0), "2": text(answer=-5.0), "3": text(answer=-15.0)}, over=text())
    records = made.rounds()
    assert [record.verdict.value for record in records] == ["keep", "discard", "keep"]
    assert records[2].findings[0].code == "replaces"
    assert records[2].findings[0].detail == "train.py ANSWER: -10.0 -> -15.0, proposed from 0.0"
    assert [record.baseline.value for record in records if record.baseline] == [0.0, -10.0, -10.0]
    made.check(over=True)


@PARALLEL
def test_other_edits_of_one_line_conflict_and_no_win_is_undone(parallel: int, fake_loop: MakeLoop) -> None:
    made = task(fake_loop, "greedy", text())
    made.offer({"1": text(answer=-10.0, note="a"), "2": text(extra=-15.0, note="b")}, over=text())
    together = threading.Barrier(2, timeout=30)

    def running(number: int) -> None:
        if parallel == 2 and number in (2, 3):  # 1 is the baseline's
            together.wait()

    made.running = running
    made.rounds(parallel=parallel)
    ends = made.ends()
    [won] = [name for name, record in ends.items() if record.promotion]
    lost = ends["2" if won == "1" else "1"]
    assert lost.verdict is Verdict.REJECTED and "train.py" in lost.reason and codes(lost) == ["edit_conflict"]
    assert tip(made) == (text(answer=-10.0, note="a") if won == "1" else text(extra=-15.0, note="b")).strip()
    made.check(over=True)


def test_a_win_on_the_old_champion_is_never_dropped_by_one_draw_on_the_new(fake_loop: MakeLoop) -> None:
    """Both pass the screen at once; whichever is confirmed last is confirmed anew on the first, whatever it drew."""
    made = task(fake_loop, "confirm", text(apart=9))
    made.offer({"1": text(answer=-0.5, apart=9), "2": text(extra=-0.5, apart=9)}, over=text(apart=9))
    made.rounds(parallel=2)
    records = made.records()
    moved = [record for record in records if record.moved_from is not None and record.confirms is None]
    for record in moved:
        assert record.verdict is Verdict.PENDING, record.reason
        before = next(one for one in records if one.id == record.moved_from)
        assert before.verdict is Verdict.PENDING and before.candidate_tree != record.candidate_tree
        found = next(one for one in records if one.confirms == record.id and one.verdict is not Verdict.INTERRUPTED)
        assert found.decision is not None and found.decision.pairs and found.base_commit == record.base_commit
    assert tip(made) == text(answer=-0.5, extra=-0.5, apart=9).strip()
    assert verdicts(made) == {"1": "keep", "2": "keep"}
    made.check(over=True)


def test_what_the_champion_holds_already_is_neither_measured_nor_promoted(fake_loop: MakeLoop) -> None:
    made = task(fake_loop, "greedy", text())
    made.offer({"1": text(answer=-10.0), "2": text(answer=-10.0)}, over=text())
    records = made.rounds()
    assert [record.verdict.value for record in records] == ["keep", "discard"]
    assert records[1].reason.endswith("holds this change already") and codes(records[1]) == ["resubmitted"]
    assert records[1].metric.value is None and made.made.git("rev-list", "--count", "main..arsandbox/t") == "1"
    made.check(over=True)


def test_what_is_no_patch_is_refused_and_the_loop_goes_on(fake_loop: MakeLoop) -> None:
    made = task(fake_loop, "greedy", text())
    made.offer({"2": text(answer=-10.0)}, over=text())
    (made.queue / "1.patch").write_text("no diff at all\n")
    records = made.rounds()
    assert [record.verdict.value for record in records] == ["rejected", "keep"]
    assert "1.patch" in records[0].reason and "no change that git can read" in records[0].reason
    kept = made.repository.state / "experiments" / records[0].id / "proposed.diff"
    assert kept.read_text() == "no diff at all\n"
    made.check(over=True)


def test_the_number_of_rounds_counts_a_proposal_once(fake_loop: MakeLoop) -> None:
    """What went back is played to its end although as many rounds were begun as are asked for."""
    made = task(fake_loop, "greedy", text())
    made.offer({"1": text(answer=-20.0)}, over=text(answer=-10.0))
    made.offer({"2": text(answer=-10.0)}, over=text())
    records = made.rounds(bounds=Bounds(count=2))
    assert [(record.description[:1], record.verdict.value) for record in records] == [("2", "keep"), ("1", "keep")]
    assert tip(made) == text(answer=-20.0).strip()
    made.check(over=True)


@pytest.mark.parametrize("step", ["noted", "begun", "published", "played"])
def test_what_went_back_survives_its_controller(step: str, fake_loop: MakeLoop) -> None:
    made = task(fake_loop, "greedy", text())
    made.offer({"1": text(answer=-20.0)}, over=text(answer=-10.0))
    made.offer({"2": text(answer=-10.0)}, over=text())
    killed = made.child(die_at=step)
    made.check(over=False)
    made.until_done(killed)
    assert verdicts(made) == {"1": "keep", "2": "keep"} and tip(made) == text(answer=-20.0).strip()
    made.check(over=True)


def test_a_command_whose_edit_conflicts_is_asked_again_once_with_the_conflict_named(fake_loop: MakeLoop) -> None:
    made = task(fake_loop, "greedy", text())
    briefs: list[dict[str, str]] = []
    trained, second, lock = play(0.0), threading.Event(), threading.Lock()
    edits = {1: text(answer=-10.0, note="a"), 2: text(extra=-15.0, note="b")}

    def run(spec: SandboxSpec) -> Script:
        if spec.stage is Stage.TRAIN:
            if "NOTE = 'a'" in "".join(f.read_text() for layer in spec.layers for f in Path(layer).glob("train.py")):
                assert second.wait(30)  # the first round trains until the second one's edit is proposed
            return trained(spec)
        folder = next(mount.source for mount in spec.mounts if mount.target == "/run/arsandbox-brief")
        brief = {str(f.relative_to(folder)): f.read_text() for f in Path(folder).rglob("*") if f.is_file()}
        with lock:
            briefs.append(brief)
        number = int(spec.environment["ARSANDBOX_ROUND"])
        said = f"DESCRIPTION: edit {len(briefs)}\n".encode()
        if number == 2:
            second.set()
        if "conflict/edit.diff" in brief:
            now = brief["champion/train.py"]
            return Script(files={"train.py": now.replace("EXTRA = 0.0", "EXTRA = -15.0").encode()}, output=said)
        return Script(files={"train.py": edits[number].encode()}, output=said)

    made.propose = "command:agent"
    records = made.rounds(engine=FakeEngine(run, isolation="container"), bounds=Bounds(count=2), ahead=1)
    by_number = {record.round.number: record for record in records if record.round}
    assert [by_number[n].verdict.value for n in (1, 2)] == ["keep", "keep"]
    asked_again = [brief for brief in briefs if "conflict/edit.diff" in brief]
    assert len(asked_again) == 1 and "-NOTE = 'none'" in asked_again[0]["conflict/edit.diff"]
    assert "has changed meanwhile: the edit conflicts with" in asked_again[0]["message.md"]
    assert "in train.py." in asked_again[0]["message.md"]
    assert codes(by_number[2]) == ["edit_conflict"]
    assert "ANSWER = -10.0" in tip(made) and "EXTRA = -15.0" in tip(made)
    made.check(over=True)


def numbers_of(records: Sequence[Record]) -> list[int]:
    return [record.round.number for record in records if record.round]


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_turns_come_in_the_order_of_proposal_whatever_is_made_ahead(ahead: int, fake_loop: MakeLoop) -> None:
    made = task(fake_loop, "greedy", text())
    made.offer({str(n): text(extra=float(n)) for n in range(1, 6)}, over=text())
    records = made.rounds(ahead=ahead)
    trained = [record.metric.value for record in records if record.metric.value is not None]
    assert numbers_of(records) == [1, 2, 3, 4, 5] and trained == [1.0, 2.0, 3.0, 4.0, 5.0]
    started = [record.stages[0].started_at for record in made.records() if record.round]
    assert started == sorted(started)
    made.check(over=True)


def test_a_bound_that_is_reached_keeps_what_was_made_ahead_for_a_resume(fake_loop: MakeLoop) -> None:
    made = task(fake_loop, "greedy", text())
    made.offer({str(n): text(extra=float(n)) for n in range(1, 6)}, over=text())
    assert numbers_of(made.rounds(bounds=Bounds(plateau=2))) == [1, 2]
    made.check(over=True)
    assert numbers_of(made.rounds(resume=True)) == [3, 4, 5]
    made.check(over=True)


def test_what_went_back_waits_for_the_end_of_the_queue_after_a_resume_too(fake_loop: MakeLoop) -> None:
    made = task(fake_loop, "greedy", text())
    made.offer({"1": text(answer=-20.0)}, over=text(answer=-10.0))
    made.offer({"2": text(extra=3.0)}, over=text())
    made.offer({"3": text(answer=-10.0)}, over=text())
    stop = made.made.path / "STOP"
    made.running = lambda number: stop.touch() if number == 2 else None  # 1 is the baseline's
    assert [record.description[:1] for record in made.rounds(ahead=0)] == ["2"]
    stop.unlink()
    made.running = lambda number: None
    assert [record.description[:1] for record in made.rounds(resume=True, ahead=0)] == ["3", "1"]
    assert verdicts(made) == {"1": "keep", "2": "discard", "3": "keep"}
    made.check(over=True)


def test_a_winner_whose_first_run_was_disturbed_survives_its_controller(
    fake_loop: MakeLoop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    disturbed, real = tmp_path / "disturbed", hygiene.disturbances

    def once(conditions: Conditions | None, measurement: MeasurementConfig) -> list[str]:
        if disturbed.exists():
            return list(real(conditions, measurement))
        disturbed.touch()
        return ["somebody else computed"]

    made = task(fake_loop, "confirm", text())
    made.offer({"1": text(answer=-10.0)}, over=text())
    disturbed.touch()
    made.rounds(bounds=Bounds(seconds=0))  # the champion and its noise
    disturbed.unlink()
    monkeypatch.setattr(hygiene, "disturbances", once)
    killed = made.child(die_at="paired")
    assert [record.verdict.value for record in made.records() if record.round and not record.part] == [
        "invalid", "pending",
    ]  # fmt: skip
    made.until_done(killed)
    assert tip(made) == text(answer=-10.0).strip()


def test_a_promotion_that_was_only_noted_is_measured_anew_if_the_branch_has_moved(fake_loop: MakeLoop) -> None:
    made = task(fake_loop, "greedy", text())
    made.offer({"0": text(extra=-1.0), "1": text(answer=-10.0)}, over=text())
    made.rounds(bounds=Bounds(count=1))
    assert made.child(die_at="intended", resume=True).code == KILLED
    git = made.made.git
    made.made.write({"train.py": text(extra=-15.0)})
    git("add", "train.py")
    rival = git("commit-tree", git("write-tree"), "-p", git("rev-parse", "arsandbox/t"), "-m", "another's win")
    git("reset", "-q", "--hard")
    git("update-ref", "refs/heads/arsandbox/t", rival)
    made.rounds(resume=True)
    assert tip(made) == text(answer=-10.0, extra=-15.0).strip()
    [won] = [record for record in made.records() if record.promotion and record.description.startswith("1.patch")]
    assert won.moved_from is not None and won.base_commit == rival


def test_nobody_is_asked_again_once_no_further_round_begins(fake_loop: MakeLoop) -> None:
    """STOP comes while the second edit is proposed, which then conflicts: it stays for a resume."""
    made = task(fake_loop, "greedy", text())
    stop, asked = made.made.path / "STOP", list[int]()
    trained, proposing = play(0.0), threading.Event()
    edits = {1: text(answer=-10.0, note="a"), 2: text(extra=-15.0, note="b")}

    def run(spec: SandboxSpec) -> Script:
        if spec.stage is Stage.TRAIN:
            if "NOTE = 'a'" in "".join(f.read_text() for layer in spec.layers for f in Path(layer).glob("train.py")):
                assert proposing.wait(30)
            return trained(spec)
        number = int(spec.environment["ARSANDBOX_ROUND"])
        asked.append(number)
        if number == 2 and asked.count(2) == 1:
            proposing.set()
            wait_for(lambda: made.repository.branch_tip("arsandbox/t"), what="the first promotion")
            stop.touch()
        return Script(files={"train.py": edits[number].encode()}, output=f"DESCRIPTION: {len(asked)}\n".encode())

    made.propose = "command:agent"
    engine = FakeEngine(run, isolation="container")
    made.rounds(engine=engine, bounds=Bounds(count=2), parallel=2, ahead=0)
    assert asked == [1, 2]

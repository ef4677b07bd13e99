"""The loop on the fake engine: who trains when, and what is decided against which champion."""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from arsandbox.sandbox import experiment, steps
from arsandbox.sandbox.engines.fake import FakeEngine, Script
from arsandbox.sandbox.engines.port import SandboxSpec
from arsandbox.sandbox.errors import UsageError
from arsandbox.sandbox.events import Silent
from arsandbox.sandbox.ledger import Ledger
from arsandbox.sandbox.loop.bounds import Bounds, gpu_seconds
from arsandbox.sandbox.loop.running import Order, base_of
from arsandbox.sandbox.models import Reason, Stage, Termination, Usage, Verdict
from arsandbox.sandbox.planning import engine_name
from arsandbox.sandbox.record import Promotion, Record, StageRecord
from arsandbox.sandbox.rerun import rerun
from arsandbox.sandbox.settings import Options
from arsandbox_fixtures.fake_loop import FakeLoop, play, train

MakeLoop = Callable[..., FakeLoop]
FREE = "[measurement]\npin = false\n"


def until(condition: Callable[[], bool], *, seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not condition():
        time.sleep(0.01)
    return condition()


def test_the_next_sandbox_is_made_while_the_one_before_trains(fake_loop: MakeLoop) -> None:
    made = fake_loop(config=FREE)
    made.offer({"1": train(extra=2.0), "2": train(extra=3.0), "3": train(9.0)})
    seen: list[tuple[bool, int]] = []

    def running(number: int) -> None:
        if number in (2, 3):  # 1 is the baseline's; while 4 runs there is no next one
            ready = until(lambda: engine.calls["enter"] == number + 1)
            seen.append((ready, engine.calls["run"]))

    made.running = running
    engine = made.engine()
    records = made.rounds(engine=engine)
    assert seen == [(True, 2), (True, 3)]  # made, and not started
    assert [record.verdict for record in records] == [Verdict.DISCARD, Verdict.DISCARD, Verdict.KEEP]
    gaps = [record.timing.gap_s for record in made.records() if record.round]
    assert all(gap is not None and gap >= 0 for gap in gaps), gaps
    made.check(over=True)


@pytest.mark.parametrize("parallel", [1, 3])
def test_as_many_train_at_a_time_as_asked_for_and_no_more(parallel: int, fake_loop: MakeLoop) -> None:
    made = fake_loop(config=FREE)
    made.offer({str(n): train(extra=float(n)) for n in range(1, 8)} | {"8": train(9.0)})
    at_once, most, lock = 0, Counter[int](), threading.Lock()
    together = threading.Event()

    def running(number: int) -> None:
        nonlocal at_once
        if number == 1:
            return
        with lock:
            at_once += 1
            most[at_once] += 1
            if at_once == parallel:
                together.set()
        together.wait(10)  # until as many are here as may be
        time.sleep(0.02)
        with lock:
            at_once -= 1

    made.running = running
    made.rounds(parallel=parallel)
    assert max(most) == parallel
    ends = made.ends()
    assert sorted(ends) == [str(n) for n in range(1, 9)]
    assert {name for name, record in ends.items() if record.promotion} == {"8"}
    made.check(over=True)


@pytest.mark.parametrize("rule", ["greedy", "confirm"])
def test_a_command_is_told_cleaned_tails_and_values_no_finer_than_the_noise(rule: str, fake_loop: MakeLoop) -> None:
    made = fake_loop(rule=rule, noise=0.1)
    briefs: list[dict[str, str]] = []
    trained = play(0.1)

    def run(spec: SandboxSpec) -> Script:
        if spec.stage is Stage.TRAIN:
            found = trained(spec)
            return found if found.exit_code == 0 else found.model_copy(update={"output": b"one\ntwo\x1b[31m\nthree\n"})
        folder = next(mount.source for mount in spec.mounts if mount.target == "/run/arsandbox-brief")
        briefs.append({str(f.relative_to(folder)): f.read_text() for f in Path(folder).rglob("*") if f.is_file()})
        number = len(briefs)
        if number == 2:
            return Script(output=b"no model answers\n", exit_code=7)
        text = train(extra=1.0 + number) if number != 3 else train(middle="raise SystemExit(1)")
        return Script(output=b"DESCRIPTION: try %d\n" % number, files={"train.py": text.encode()})

    made.propose = "command:agent"
    rounds = made.rounds(engine=FakeEngine(run, isolation="container"), bounds=Bounds(count=6))
    by_number = {record.round.number: record for record in rounds if record.round}
    assert [by_number[n].verdict.value for n in range(1, 7)] == [
        "discard", "crash", "crash", "discard", "discard", "discard",
    ]  # fmt: skip
    assert by_number[2].reason.endswith("no model answers") and by_number[1].description == "command: try 1"
    last = briefs[-1]
    tails = [text.splitlines()[1:] for name, text in last.items() if name.startswith("failures/")]
    assert sorted(tails) == [["| no model answers"], ["| one", "| two", "| three"]]
    results = json.loads(last["results.json"])
    assert {"baseline", "discard", "crash"} <= {row["verdict"] for row in results}
    values = [row["value"] for row in results if row["value"] is not None]
    exact = [record.metric.value for record in made.records() if record.part is None]
    if rule == "greedy":
        assert set(values) <= set(exact)
        return
    drawn = [r.metric.value for r in made.records() if r.part and r.part.role == "calibration"]
    base = next(r.metric.value for r in made.records() if r.verdict is Verdict.BASELINE)
    step = statistics.stdev([base, *drawn]) / 2
    assert all(abs(value - round(value / step) * step) < step / 50 for value in values)
    told = "".join(last.values())
    assert not any(f"{value:.6g}" in told for value in exact if value is not None)


def test_a_bound_on_gpu_time_is_refused_where_no_gpu_is_asked_for(fake_loop: MakeLoop) -> None:
    made = fake_loop()
    made.offer({"1": train(9.0)})
    with pytest.raises(UsageError, match="--gpu-time: no GPU is asked for") as caught:
        made.rounds(bounds=Bounds(gpu_seconds=60))
    assert made.records() == [] and "--gpus 1" in caught.value.hint
    assert len(made.rounds()) == 1


def test_a_resumed_loop_follows_the_config_that_it_began_with(fake_loop: MakeLoop) -> None:
    made = fake_loop()
    made.offer({"1": train(9.0)})
    made.rounds()
    began = made.made.git("rev-parse", "HEAD")
    made.made.write({"arsandbox.toml": f'engine = "embedded"\n{(made.made.path / "arsandbox.toml").read_text()}'})
    now = made.made.commit()
    order = Order(made.made.path, f"patches:{made.queue}", Options(tag=made.tag), Bounds())
    assert (base_of(order), base_of(replace(order, resume=True))) == (now, began)
    assert [engine_name(made.made.path, base) for base in (now, began)] == ["embedded", "docker"]
    with pytest.raises(UsageError, match="no loop to go on with"):
        base_of(replace(order, resume=True, options=Options(tag="other")))


def test_an_error_that_nobody_foresaw_ends_the_loop_loudly(fake_loop: MakeLoop) -> None:
    """A listener of whoever calls the API may raise anything: the loop must not end as if all were done."""

    class Broken(Silent):
        def finished(self, record: Record) -> None:
            if record.round is not None:
                raise ValueError("the listener is broken")

    made = fake_loop(config=FREE)
    made.offer({"1": train(9.0), "2": train(extra=2.0)})
    made.listener = Broken()
    with pytest.raises(ValueError, match="the listener is broken"):
        made.rounds()


def test_a_rerun_counts_as_nothing_of_what_it_repeats(fake_loop: MakeLoop) -> None:
    """Checked again by hand, a confirmed round, a confirming run and a confirmation stay what they were."""
    made = fake_loop(rule="confirm", noise=0.1)
    made.offer({"1": train(7.0)})
    [winner] = made.rounds()
    assert winner.confirms is not None and winner.round is not None
    with Ledger.open(made.repository.state) as ledger:
        before = (ledger.of_loop(winner.round.loop), ledger.parts(winner.confirms), ledger.tested(winner.branch))
    part = next(record for record in before[1] if record.part is not None and record.part.side == "candidate")
    for record in (winner, part):
        again = rerun(made.repository, record, made.engine(), Silent(), mode="statistical")
        assert again.rerun is not None and again.rerun.of == record.id
    with Ledger.open(made.repository.state) as ledger:
        after = (ledger.of_loop(winner.round.loop), ledger.parts(winner.confirms), ledger.tested(winner.branch))
    assert after == before


def test_the_same_code_gets_one_draw_against_each_champion_however_often_that_moved(fake_loop: MakeLoop) -> None:
    made = fake_loop(rule="confirm", noise=0.1)
    made.offer({"worse": train(extra=30.0)})
    worse = made.queue / "worse.patch"
    engine = made.engine()

    def drawn() -> bool:
        """Whether the base with that patch, whose tree is always the same, is measured against today's champion."""
        options = Options(tag=made.tag, accept_self_reported=True)
        plan = experiment.plan(experiment.Request(made.made.path, options, patch=worse), find_image=engine.find_image)
        record = experiment.run(plan, engine, Silent())
        assert record.verdict is Verdict.DISCARD
        codes = [finding.code for finding in record.findings]
        assert codes == ([] if record.metric.value is not None else ["resubmitted"])
        return record.metric.value is not None

    found = [[drawn(), drawn()]]
    for number, (before, after) in enumerate([(10.0, 8.0), (8.0, 6.0)]):
        made.queue = worse.parent / str(number)
        made.offer({f"better-{number}": train(after)}, over=train(before))
        assert [record.verdict for record in made.rounds()] == [Verdict.KEEP]
        found.append([drawn(), drawn(), drawn()])
    assert found == [[True, False], [True, False, False], [True, False, False]]
    made.check(over=True)


def test_what_won_on_an_old_champion_is_put_onto_the_new_one_and_measured_there(fake_loop: MakeLoop) -> None:
    """Two improvements train at the same time; whichever ends last is put onto the other, and both are kept."""
    made = fake_loop(config=FREE)
    made.offer({"much": train(7.0), "little": train(extra=-1.0)})
    together = threading.Barrier(2, timeout=30)

    def running(number: int) -> None:
        if number in (2, 3):  # 1 is the baseline's
            together.wait()

    made.running = running
    made.rounds(parallel=2)
    ends = made.ends()
    first, last = sorted(ends.values(), key=lambda record: record.finished_at)
    assert first.promotion is not None and last.promotion is not None and first.moved_from is None
    assert last.baseline is not None and last.baseline.value == first.metric.value
    assert (last.baseline.experiment, last.base_commit) == (first.id, first.promotion.commit)
    before = next(record for record in made.records() if record.id == last.moved_from)
    assert before.verdict is Verdict.PENDING and before.baseline is not None and before.baseline.value == 10.0
    assert before.reason in next(f.detail for f in last.findings if f.code == "champion_moved")
    text = made.made.git("show", "arsandbox/t:train.py")
    assert "ANSWER = 7.0" in text and "EXTRA = -1.0" in text and last.metric.value == 6.0
    made.check(over=True)


def test_a_champion_whose_record_is_not_written_yet_is_not_measured_again(
    fake_loop: MakeLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The branch has moved, the record follows: whoever looks between the two finds the promotion that is noted."""
    made = fake_loop(config=FREE)
    made.offer({"much": train(7.0), "little": train(8.0)})
    together, judged, looked = threading.Barrier(2, timeout=30), threading.Semaphore(0), threading.Event()
    published: list[str] = []
    real = steps.reached

    def running(number: int) -> None:
        if number in (2, 3):  # 1 is the baseline's
            together.wait()

    def reached(step: str) -> None:
        if step == "judged":
            judged.release()
        if step == "published" and not published:
            published.append(step)
            for _ in range(2):  # both are judged; the other one finds the branch moved
                judged.acquire(timeout=10)
            assert looked.wait(10)
        real(step)

    made.running = running
    promoting = Ledger.promoting

    def looking(ledger: Ledger, commit: str, setup: str) -> Record | None:
        found = promoting(ledger, commit, setup)
        if published:
            looked.set()
        return found

    monkeypatch.setattr(steps, "reached", reached)
    monkeypatch.setattr(Ledger, "promoting", looking)
    made.rounds(parallel=2)
    measured = [record.candidate_tree for record in made.records() if record.verdict is Verdict.BASELINE]
    assert len(measured) == 1, "a champion was measured again"
    made.check(over=True)


def test_each_bound_ends_the_loop_when_it_is_reached(make_record: Callable[..., Record]) -> None:
    won = make_record(promotion=Promotion(commit="a" * 40, ref="refs/heads/x"))
    lost, crashed = make_record(verdict=Verdict.DISCARD), make_record(verdict=Verdict.CRASH, reason="exit code 1")

    def why(bounds: Bounds, rounds: list[Record], *, elapsed_s: float = 0, gpu_s: float = 0) -> str | None:
        return bounds.reached(rounds, elapsed_s=elapsed_s, gpu_s=gpu_s)

    assert why(Bounds(), [lost] * 99, elapsed_s=1e9, gpu_s=1e9) is None and not Bounds().all_begun(99)
    assert not Bounds(count=3).all_begun(2) and Bounds(count=3).all_begun(3)
    assert why(Bounds(seconds=10), [], elapsed_s=9.9) is None and why(Bounds(seconds=10), [], elapsed_s=10)
    assert why(Bounds(gpu_seconds=10), [], gpu_s=9) is None and why(Bounds(gpu_seconds=10), [], gpu_s=11)
    assert why(Bounds(failures=2), [crashed, lost, crashed]) is None  # in a row
    assert "the last: exit code 1" in str(why(Bounds(failures=2), [lost, crashed, crashed]))
    assert why(Bounds(plateau=2), [lost, lost, won, crashed]) is None
    assert "promoted nothing" in str(why(Bounds(plateau=2), [won, lost, crashed]))


def test_gpu_time_counts_every_device_of_every_run(make_record: Callable[..., Record]) -> None:
    def stage(name: str, wall_s: float, *uuids: str) -> StageRecord:
        used = Usage(gpu={"devices": [{"uuid": uuid} for uuid in uuids]} if uuids else {})
        ended = Termination(reason=Reason.COMPLETED, exit_code=0, signal=None, detail="")
        return StageRecord(
            stage=Stage(name),
            termination=ended,
            usage=used,
            started_at="",
            wall_s=wall_s,
            log_sha256="",
            log_truncated=False,
        )

    evaluated = (stage("train", 10.0, "GPU-1", "GPU-2"), stage("score", 9.0), stage("model", 3.0, "GPU-1"))
    assert gpu_seconds([make_record(stages=evaluated), make_record(stages=(stage("train", 5.0),))]) == 23.0


@pytest.mark.parametrize(
    ("propose", "says"),
    [
        ("swep", "did you mean 'sweep'"),
        ("patch:queue", "did you mean 'patches'"),
        ("patches:nowhere", "no such directory"),
        ("sweep:x", "not a number"),
    ],
)
def test_what_names_no_proposer_is_refused_before_anything_is_measured(
    propose: str, says: str, fake_loop: MakeLoop
) -> None:
    made = fake_loop(rule="confirm", noise=0.1)
    made.propose = propose
    engine = made.engine()
    with pytest.raises(UsageError, match=says) as refused:
        made.rounds(engine=engine)
    assert refused.value.hint and engine.calls["run"] == 0 and made.records() == []

"""The loop on the fake engine: who trains when, and what is decided against which champion."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable

import pytest
from arsandbox_fake_loop import FakeLoop, train

from arsandbox.sandbox.models import Verdict

MakeLoop = Callable[..., FakeLoop]
FREE = "[measurement]\npin = false\n"


def until(condition: Callable[[], bool], *, seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not condition():
        time.sleep(0.01)
    return condition()


def test_the_next_sandbox_is_made_while_the_one_before_trains(fake_loop: MakeLoop) -> None:
    made = fake_loop(config=FREE)
    made.offer({"1": train(9.0), "2": train(extra=2.0), "3": train(extra=3.0)})
    seen: list[tuple[bool, int]] = []

    def running(number: int) -> None:
        if number in (2, 3):  # 1 is the baseline's; while 4 runs there is no next one
            ready = until(lambda: engine.calls["enter"] == number + 1)
            seen.append((ready, engine.calls["run"]))

    made.running = running
    engine = made.engine()
    records = made.rounds(engine=engine)
    assert seen == [(True, 2), (True, 3)]  # made, and not started
    assert [record.verdict for record in records] == [Verdict.KEEP, Verdict.DISCARD, Verdict.DISCARD]
    gaps = [record.timing.gap_s for record in made.records() if record.round]
    assert all(gap is not None and gap < 1 for gap in gaps), gaps
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

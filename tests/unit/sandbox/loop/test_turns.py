"""Whose turn it is among rounds that are under way at the same time."""

from __future__ import annotations

import threading

from arsandbox.sandbox.loop.turns import Turns


def test_of_those_under_way_none_overtakes_one_that_has_not_begun() -> None:
    turns = Turns(2)
    for number in (1, 2, 3):
        turns.join(number)
    assert [turns.come(number) for number in (1, 2, 3)] == [True, False, False]
    turns.begin(1)
    assert [turns.come(number) for number in (1, 2, 3)] == [True, True, False]
    turns.leave(2)  # it had nothing to run
    assert turns.come(3)
    turns.leave(1)
    turns.leave(3)


def test_one_that_waits_for_another_lets_it_begin_and_hears_of_its_end() -> None:
    turns, heard = Turns(2), list[bool]()
    turns.join(1)
    turns.join(2)
    waiting = threading.Thread(target=lambda: heard.append(turns.wait_for_another(1, since=turns.ended)))
    waiting.start()
    turns.wait(2)
    turns.begin(2)
    turns.leave(2)
    waiting.join(10)
    assert heard == [True] and not turns.wait_for_another(1, since=turns.ended)


def test_of_two_that_wait_for_each_other_one_is_told_that_nothing_is_under_way() -> None:
    turns, heard = Turns(2), list[bool]()
    turns.join(1)
    turns.join(2)
    since = turns.ended

    def wait(number: int) -> None:
        heard.append(turns.wait_for_another(number, since=since))
        turns.leave(number)

    threads = [threading.Thread(target=wait, args=(number,)) for number in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(heard) in ([False, False], [False, True])

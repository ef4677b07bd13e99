"""SystemExperiment while another controller promotes to the same branch."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from arsandbox.sandbox import candidate as candidates
from arsandbox.sandbox.api import opening, system
from arsandbox.sandbox.proposers.port import Brief, Proposal
from arsandbox_fixtures.fake_loop import FakeLoop, train

MakeLoop = Callable[..., FakeLoop]


class Slow:
    """A proposer that works while a loop promotes something else."""

    name, ahead, queued = "slow", 0, False

    def __init__(self, made: FakeLoop, edit: str) -> None:
        self._made, self._edit = made, edit

    def propose(self, brief: Brief) -> Proposal | None:
        self._made.rounds()
        objects = self._made.repository.objects
        found = candidates.from_edits(objects, brief.champion, [("train.py", self._edit.encode(), "100644")])
        return Proposal(diff=found.diff, description="slow")


@pytest.mark.parametrize(
    ("edit", "status", "tip"),
    [
        (train(extra=-5.0), "committed", train(7.0, extra=-5.0)),
        (train(9.0, middle="raise"), "rejected", train(7.0, middle="0")),
    ],
)
def test_an_edit_is_put_onto_what_was_promoted_while_it_was_proposed(
    edit: str, status: str, tip: str, fake_loop: MakeLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = fake_loop()
    made.offer({"1": train(7.0, middle="0" if status == "rejected" else "pass")})
    engine = made.engine()
    monkeypatch.setattr(opening.Target, "engine", lambda self: engine)
    monkeypatch.setattr(opening.Target, "_find_image", lambda self, name: engine.find_image(name))
    monkeypatch.setattr(system, "open_proposer", lambda spec, context: Slow(made, edit))
    done = system.SystemExperiment(made.made.path, metric="loss", tag=made.tag, propose="sweep").run()
    assert done.status == status, done
    assert made.made.git("show", f"arsandbox/{made.tag}:train.py") == tip.strip()
    made.check(over=True)

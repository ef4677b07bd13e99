"""Controllers that die: nothing is left, the ledger knows, and nobody else's things are touched."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from testcontainers.core.container import DockerContainer

from arsandbox.sandbox.workspace.overlay import unmount_below
from arsandbox_fixtures.command_line import arsandbox, driven
from arsandbox_fixtures.docker_engine import containers, volumes
from arsandbox_fixtures.home import new_home, remove_home
from arsandbox_fixtures.image import image_digest
from arsandbox_fixtures.leftovers import leftovers
from arsandbox_fixtures.task import answering
from arsandbox_fixtures.waiting import wait_for

pytestmark = [pytest.mark.engine, pytest.mark.timeout(180)]

SLOW = answering(5, before="import time; time.sleep(60)")


@pytest.fixture
def own_home(home: Path) -> Iterator[Path]:
    """A state directory of this test alone, so that gc has only this test's leftovers to find."""
    path = new_home()
    yield path
    for one in containers(path):
        one.remove(force=True, v=True)
    for one in volumes(path):
        one.remove(force=True)
    remove_home(path)


def training(project: Any, home: Path, *options: str) -> tuple[Any, Any, Any]:
    """A project whose candidate is training right now: (project, the CLI, the container)."""
    task = project(home=home)
    assert task.run("--json", *(option for option in options if option != "--json")).code == 0
    running = task.start("--patch", task.patch(SLOW), *options)
    return task, running, task.wait_for_training()


def killed(running: Any) -> None:
    running.process.send_signal(signal.SIGKILL)
    running.wait(10)


def gc(home: Path) -> list[str]:
    done = arsandbox("gc", "--json", env={"ARSANDBOX_HOME": str(home)})
    assert done.code == 0, done
    removed = json.loads(done.out)["removed"]
    assert isinstance(removed, list)
    return removed


def test_gc_after_a_kill(project: Any, own_home: Path) -> None:
    task, running, container = training(project, own_home)
    labels = container.labels
    assert labels["arsandbox.experiment"] in container.name
    assert labels["arsandbox.controller"].split("/")[1] == str(running.process.pid)
    killed(running)
    container.reload()
    assert container.status == "running", "the kill came too late to test anything"
    assert leftovers(own_home)

    removed = gc(own_home)
    assert leftovers(own_home) == []
    for kind in ("container", "volume", "directory", "experiment"):
        assert any(line.startswith(kind) for line in removed), (kind, removed)
    last = task.history()[-1]
    assert (last["id"], last["verdict"]) == (labels["arsandbox.experiment"], "interrupted")
    assert last["promotion"] is None and last["finished_at"] >= last["started_at"]
    assert gc(own_home) == []
    task.verify()


def test_the_next_run_repairs_by_itself(project: Any, own_home: Path) -> None:
    task, running, _container = training(project, own_home)
    killed(running)
    done = task.run_train(answering(4))
    assert done.record["verdict"] == "keep", done
    assert "cleaned up after a dead controller" in done.err
    assert [r["verdict"] for r in task.history()] == ["baseline", "interrupted", "keep"]
    assert leftovers(own_home) == []
    task.verify()


def test_a_kill_while_the_evaluation_runs(project: Any, own_home: Path) -> None:
    task = project({"evaluate.py": "import time; time.sleep(60)\n"}, home=own_home)
    running = task.start()
    wait_for(
        lambda: any("-evaluate-" in c.name and c.status == "running" for c in containers(own_home)),
        what="the start of the evaluation",
    )
    killed(running)
    gc(own_home)
    assert leftovers(own_home) == []
    assert [r["verdict"] for r in task.history()] == ["interrupted"]


def test_the_sandbox_of_a_dead_controller_ends_at_its_deadline(project: Any, own_home: Path) -> None:
    """Containment, 24: without anybody's help."""
    _, running, container = training(project, own_home, "--budget", "4s", "--grace", "0s")
    killed(running)
    container.reload()
    deadline = datetime.fromisoformat(container.labels["arsandbox.deadline"])
    assert deadline > datetime.now(UTC)
    assert container.status == "running", "the kill came too late to test anything"
    end = time.monotonic() + 8  # 4 s of budget, and as much again
    while time.monotonic() < end and container.status == "running":
        time.sleep(0.2)
        container.reload()
    assert container.status != "running", "the candidate trains on, for nobody, past its budget"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run(project: Any, own_home: Path, number: signal.Signals) -> None:
    task, running, container = training(project, own_home, "--json")
    running.process.send_signal(number)
    done = running.wait(30)
    assert done.code == 130, done
    assert "Traceback" not in done.err and "interrupted" in done.err
    assert len(done.out.splitlines()) == 1 and json.loads(done.out)["error"]["exit_code"] == 130
    assert leftovers(own_home) == []
    last = task.history()[-1]
    assert (last["verdict"], last["id"]) == ("interrupted", container.labels["arsandbox.experiment"])
    assert gc(own_home) == []
    task.verify()


def test_two_interrupts_in_a_row(project: Any, own_home: Path) -> None:
    """An impatient user: whatever the second one cuts off, gc finds."""
    task, running, _ = training(project, own_home)
    for _ in range(3):
        running.process.send_signal(signal.SIGINT)
        time.sleep(0.1)
    done = running.wait(30)
    assert done.code in (130, -signal.SIGINT), done  # the last one may hit the interpreter's own end
    assert "Traceback" not in done.err
    gc(own_home)
    assert leftovers(own_home) == []
    assert task.history()[-1]["verdict"] == "interrupted"


def test_gc_touches_nobody_else(project: Any, own_home: Path, home: Path) -> None:
    """A living run of ours, one of another state directory, and a container that has nothing to do with us."""
    gc(home)  # what failures of other tests may have left
    task, running, container = training(project, own_home)
    other_home = new_home()
    other, other_running, other_container = training(project, other_home)
    strangers = [
        DockerContainer(image_digest()).with_command(["sleep", "100"]).with_kwargs(labels=labels)
        for labels in ({}, {"arsandbox.image": "cpu", "other": "label"})
    ]
    try:
        for one in strangers:
            one.start()
        assert gc(home) == gc(own_home) == gc(other_home) == []
        for one in (container, other_container, *(s.get_wrapped_container() for s in strangers)):
            one.reload()
            assert one.status == "running", one.name
        assert task.history()[-1]["verdict"] == other.history()[-1]["verdict"] == "baseline"
        killed(running)
        assert any(line.startswith("container") for line in gc(own_home))
        assert leftovers(own_home) == []
        other_container.reload()
        assert other_container.status == "running"
    finally:
        for one in strangers:
            one.stop()
        other_running.process.send_signal(signal.SIGINT)
        assert other_running.wait(30).code == 130
        assert leftovers(other_home) == []
        shutil.rmtree(other_home)


def test_controllers_of_two_state_directories_give_different_uids(project: Any, own_home: Path, home: Path) -> None:
    """One uid per concurrent run (containment, 4), whoever's controller it is: they share the engine and the host."""
    _, first, container = training(project, own_home)
    _, second, other = training(project, home)
    users = {container.attrs["Config"]["User"], other.attrs["Config"]["User"]}
    for running in (first, second):
        running.process.send_signal(signal.SIGINT)
        assert running.wait(30).code == 130
    assert len(users) == 2, users


def test_an_engine_object_without_a_run_directory(project: Any, own_home: Path) -> None:
    """The state directory was removed under a run: the labels are enough."""
    task, running, container = training(project, own_home)
    killed(running)
    unmount_below(own_home)
    shutil.rmtree(task.state())
    removed = gc(own_home)
    assert f"container {container.name}" in removed
    assert leftovers(own_home) == []


# --- between the intent and the update of the ref ---------------------------------------------------------

DRIVER = """
import os, sys
from arsandbox.sandbox import promotion
original, mode = promotion.publish, sys.argv.pop(1)

def publish(repository, prepared):
    if mode == "before":
        os._exit(9)
    moved = original(repository, prepared)
    if mode == "interrupt":
        raise KeyboardInterrupt
    os._exit(9)

promotion.publish = publish
from arsandbox.cli.app import main
main()
"""


def half_promoted(project: Any, home: Path, mode: str) -> tuple[Any, Any]:
    task = project(home=home)
    assert task.run("--json").code == 0
    arguments = [mode, "run", "--repo", task.path, "--tag", "t", "--patch", task.patch(answering(5)), "--json"]
    return task, driven(DRIVER, arguments, task.env)


@pytest.mark.parametrize(("mode", "how"), [("before", "gc"), ("after", "run")])
def test_a_promotion_is_completed_exactly_once(project: Any, own_home: Path, mode: str, how: str) -> None:
    task, done = half_promoted(project, own_home, mode)
    assert done.code == 9, done
    assert [r["verdict"] for r in task.history()] == ["baseline"]
    assert ("arsandbox/t" in task.branches()) == (mode == "after")
    if how == "gc":
        assert any("promotion" in line and "completed" in line for line in gc(own_home))
    else:
        assert task.run_train(answering(20)).record["verdict"] == "discard"
    winner = next(r for r in task.history() if r["verdict"] == "keep")
    commit = winner["promotion"]["commit"]
    assert task.git("rev-list", "main..arsandbox/t").split() == [commit]
    assert task.git("rev-parse", f"{commit}^{{tree}}") == winner["candidate_tree"]
    assert gc(own_home) == []
    assert len([r for r in task.history() if r["verdict"] == "keep"]) == 1
    assert len(task.git("reflog", "show", "arsandbox/t").splitlines()) == 1
    assert leftovers(own_home) == []
    task.verify()


def test_a_branch_that_moved_meanwhile_is_left_alone(project: Any, own_home: Path) -> None:
    task, done = half_promoted(project, own_home, "before")
    assert done.code == 9
    task.git("branch", "arsandbox/t", "main")
    gc(own_home)
    last = task.history()[-1]
    # As a living controller leaves it: to be decided against what the branch is now.
    assert (last["verdict"], last["promotion"]) == ("pending", None)
    assert "moved" in last["reason"]
    assert task.branches()["arsandbox/t"] == task.branches()["main"]
    task.verify()


def test_a_branch_that_was_checked_out_meanwhile_is_left_alone(project: Any, own_home: Path) -> None:
    task, _ = half_promoted(project, own_home, "before")
    task.git("switch", "-q", "-c", "arsandbox/t")
    gc(own_home)
    last = task.history()[-1]
    assert (last["verdict"], last["promotion"]) == ("keep", None)
    assert task.branches()["arsandbox/t"] == task.branches()["main"]


def test_an_interrupt_just_after_the_ref_was_moved(project: Any, own_home: Path) -> None:
    """The ledger and the branch must agree: promoted and recorded as such, or neither."""
    task, done = half_promoted(project, own_home, "interrupt")
    assert done.code in (0, 130), done
    gc(own_home)
    last = task.history()[-1]
    tip = task.branches().get("arsandbox/t")
    assert (last["promotion"] or {}).get("commit") == tip, (last["verdict"], last["reason"], tip)
    task.verify()


def test_a_repository_that_is_gone_does_not_stop_gc(project: Any, own_home: Path) -> None:
    task, _ = half_promoted(project, own_home, "before")
    task.path.rename(task.path.with_name("moved-away"))
    assert any("not promoted" in line for line in gc(own_home))
    assert gc(own_home) == []
    assert os.path.isdir(own_home)


def test_what_another_engine_left(project: Any, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes next with the embedded engine removes Docker's leftovers; where Docker is away, they wait."""
    from arsandbox.sandbox import recovery
    from arsandbox.sandbox.engines.registry import open_engine

    task, running, container = training(project, own_home)
    killed(running)
    run = next((own_home / "repos").glob("*/runs/*"))
    assert run.name == container.labels["arsandbox.experiment"]
    away = {"ARSANDBOX_HOME": str(own_home), "DOCKER_HOST": "unix:///nonexistent/docker.sock"}
    for _ in range(2):
        done = arsandbox("gc", "--engine", "embedded", "--json", env=away)
        assert done.code == 0 and "left on the engine docker" in done.out, done
    assert task.history()[-1]["verdict"] == "interrupted" and run.exists()
    monkeypatch.setenv("ARSANDBOX_HOME", str(own_home))
    recovery.recover(run.parents[1], open_engine("embedded"))
    assert leftovers(own_home) == []
    task.verify()

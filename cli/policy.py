"""`arsandbox policy`: which policy holds here, where each field of it comes from, and whether a file is one."""

from __future__ import annotations

import json as encoder
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from arsandbox.cli.boundary import application
from arsandbox.cli.options import Json, PolicyName

if TYPE_CHECKING:
    from arsandbox.policies.meet import Effective
    from arsandbox.sandbox.config import ProjectConfig

app = application(help="The policy that holds, field by field, with the source that set it; check a policy file.")


@app.command("show")
def show(
    repo: Annotated[Path | None, typer.Option("--repo", help="The git repository (default: the current one).")] = None,
    stage: Annotated[str, typer.Option(help="prepare, train, evaluate, propose, model or score.")] = "train",
    policy: PolicyName = None,
    json: Json = False,
) -> None:
    """Print each effective field of a stage's policy and which source set it."""
    from arsandbox.policies.meet import everything, shown
    from arsandbox.sandbox.errors import UsageError
    from arsandbox.sandbox.policy_sources import STAGES, stage_policies
    from arsandbox.sandbox.settings import asked_gpus

    if stage not in STAGES:
        raise UsageError(f"--stage {stage!r}: there is no such stage", hint=f"one of {', '.join(STAGES)}")
    project = _project(repo)
    asked, asker = asked_gpus(project)
    effective = stage_policies(project, named=policy, gpus=(asker, asked.number))[stage]
    if json:
        sys.stdout.write(encoder.dumps(_document(stage, effective)) + "\n")
        return
    for name, value in everything(effective.policy).items():
        sys.stdout.write(f"{name:22} {shown(name, value):24} {effective.sources[name]}\n")
    sys.stdout.write(f"{'sha256':22} {effective.policy.sha256()}\n")


@app.command("check")
def check(file: Annotated[Path, typer.Argument(help="A policy file (TOML).")], json: Json = False) -> None:
    """Say whether FILE is a valid policy, and for each stage what it would hold to here as `--policy FILE`."""
    from arsandbox.policies.meet import said, shown
    from arsandbox.policies.sources import read
    from arsandbox.sandbox.config import ProjectConfig
    from arsandbox.sandbox.policy_sources import STAGES, stage_policies

    said_there = read(file)
    name = str(file) if "/" in str(file) or file.suffix == ".toml" else f"./{file}"
    stages = stage_policies(ProjectConfig(), named=name)
    if json:
        documents = {stage: _document(stage, stages[stage]) for stage in STAGES}
        sys.stdout.write(encoder.dumps({"file": str(file), "valid": True, "stages": documents}) + "\n")
        return
    sys.stdout.write(f"{file}: a valid policy; it loosens nothing that the machine's owner set\n")
    for field, value in said(said_there).items():
        sys.stdout.write(f"  {field:22} {shown(field, value)}\n")
    for one, policy in said_there.stage.items():
        for field, value in said(policy).items():
            sys.stdout.write(f"  {field:22} {shown(field, value)} ({one} stage)\n")


def _document(stage: str, effective: Effective) -> dict[str, object]:
    from arsandbox.policies.meet import everything

    fields = {
        name: {"value": value, "source": effective.sources[name]}
        for name, value in everything(effective.policy).items()
    }
    return {"stage": stage, "sha256": effective.policy.sha256(), "fields": fields}


def _project(path: Path | None) -> ProjectConfig:
    """The config of the repository's HEAD; none where there is no repository and none was named."""
    from arsandbox.sandbox.config import ProjectConfig
    from arsandbox.sandbox.errors import ArsandboxError
    from arsandbox.sandbox.repository import Repository
    from arsandbox.sandbox.settings import load_project

    try:
        repository = Repository.open(path or Path())
    except ArsandboxError as error:
        if path is not None:
            raise
        sys.stderr.write(f"without a project: {error.message}\n")
        return ProjectConfig()
    return load_project(repository.objects, repository.head()) or ProjectConfig()

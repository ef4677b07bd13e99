"""Rebuild what a record ran with, from the record and the repository alone; refuse what was changed since."""

from __future__ import annotations

from dataclasses import replace

from arsandbox.policies.meet import Layer, narrowed
from arsandbox.policies.model import Policy
from arsandbox.sandbox import candidate as candidates
from arsandbox.sandbox import settings as configuration
from arsandbox.sandbox.candidate import Candidate
from arsandbox.sandbox.errors import MachineError, RefusedError
from arsandbox.sandbox.gpu.request import NONE
from arsandbox.sandbox.models import Stage
from arsandbox.sandbox.objects import ObjectStore
from arsandbox.sandbox.record import Record
from arsandbox.sandbox.repository import Repository
from arsandbox.sandbox.settings import Options, Settings
from arsandbox.sandbox.workspace.upper import sha256_of

_NETWORK = ("network", "hosts", "private_hosts")
# Asked for like the command line's, since what is allowed less today is refused; all else binds, whoever said it then.
_ASKED = {"limits", *_NETWORK}


def settings_of(repository: Repository, record: Record) -> Settings:
    """The settings that `record` ran with, under its policy and today's demands: nothing is looser than then.

    Raises MachineError when its base commit is gone.
    """
    objects, effective = repository.objects, record.policy.effective
    _require_commit(objects, record.base_commit)
    project = configuration.load_project(objects, record.base_commit)
    # A record that tells of none was made with `--gpus none`, or nobody asked for any; where the evaluation has some
    # `--gpus none` is refused, so that it is the latter.
    nobody = None if project is not None and project.evaluate is not None and project.evaluate.gpus else NONE
    options = Options(
        image=record.image.name,
        budget_s=record.budget_s,
        grace_s=record.grace_s,
        command=record.command,
        editable=tuple(effective.get("edits", {}).get("editable", ())),
        metric=record.metric.name,
        goal=record.metric.goal,
        limits=dict(effective["limits"]),
        caches={one.name: one.sha256 for one in record.caches},
        network=("the record", Policy(**{key: effective[key] for key in _NETWORK if key in effective})),
        gpus=effective.get("asked_gpus", nobody),
    )
    settings = configuration.resolve(project, options)
    recorded = {key: effective[key] for key in Policy.model_fields if key in effective and key not in _ASKED}
    stage = str(Stage.TRAIN)  # the one whose policy a record holds
    bound = narrowed(settings.policies[stage], Layer("the record", Policy(**recorded)))
    return replace(settings, policies={**settings.policies, stage: bound})


def candidate_of(repository: Repository, record: Record) -> Candidate:
    """The candidate of `record`, from its stored patch.

    Raises MachineError when base or patch are gone, RefusedError when they no longer give the recorded tree.
    """
    objects = repository.objects
    _require_commit(objects, record.base_commit)
    stored = repository.state / "experiments" / record.id / "patch.diff"
    if not record.patch.files:
        candidate = candidates.from_commit(objects, record.base_commit, record.base_commit)
    else:
        if not stored.is_file():
            raise MachineError(f"the patch of {record.id} is gone", hint=f"restore {stored}")
        if sha256_of(stored) != record.patch.sha256:
            raise RefusedError(f"the stored patch of {record.id} was changed")
        candidate = candidates.from_patch(objects, record.base_commit, stored)
    if candidate.tree != record.candidate_tree:
        raise RefusedError(f"base and patch of {record.id} no longer give the recorded tree")
    return candidate


def _require_commit(objects: ObjectStore, commit: str) -> None:
    if not objects.holds(commit):
        raise MachineError(
            f"the base commit {commit[:12]} is not in the repository any more",
            hint="git fetch it, or do this where it is",
        )

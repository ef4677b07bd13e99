"""The effective policy of each stage: the built-in one, the machine owner's, the project's, the command line's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import ValidationError

from arsandbox.policies import sources
from arsandbox.policies.meet import Effective, Layer, combine
from arsandbox.policies.model import Limits, Policy, StageName
from arsandbox.sandbox import config
from arsandbox.sandbox.config import EvaluateConfig, LimitsConfig, PrepareConfig, ProjectConfig
from arsandbox.sandbox.errors import MachineError, RefusedError, UsageError

STAGES: tuple[StageName, ...] = get_args(StageName)
# Keys of [limits], as users write them, to the policy's fields.
LIMIT_KEYS = {
    "cpus": "cpus",
    "memory": "memory_bytes",
    "pids": "pids",
    "disk": "disk_bytes",
    "inodes": "disk_inodes",
    "tmp": "tmp_bytes",
    "shm": "shm_bytes",
    "output": "output_bytes",
    "vram": "vram_bytes",
}


def stage_policies(
    project: ProjectConfig,
    *,
    limits: Mapping[str, Any] | None = None,
    named: str | None = None,
    gpus: tuple[str, int] = ("", 0),
    network: tuple[str, Policy] | None = None,
) -> dict[str, Effective]:
    """The policy of each stage. `limits`: the command line's, by the policy's names; `named`: `--policy`;
    `gpus`: who asks for how many of them, and `network`: who asks for which one; both
    concern the train stage alone. Those of the evaluation are the project's to ask for.

    Raises RefusedError when a source asks for more than a stricter one allows, UsageError for a malformed
    source, MachineError for more cores than the machine has.
    """
    owners = sources.owner_files()
    command_line = [sources.named(named)] if named else []
    of_project, of_options = _limits(_asked(project.limits)), _limits(limits or {})
    found: dict[str, Effective] = {}
    for stage in STAGES:
        askers = [Layer("[limits] of the project", of_project, local=False)]
        if project.policy is not None:
            askers.append(Layer("[policy] of the project", project.policy.for_stage(stage), local=False))
        askers += [Layer(name, file.for_stage(stage)) for name, file in command_line]
        askers.append(Layer("the command line", of_options))
        if stage == "train" and gpus[1]:
            askers.append(Layer(gpus[0], Policy(gpus=gpus[1])))
        if project.evaluate is not None and project.evaluate.gpus and stage == _on_gpus(project.evaluate):
            askers.append(Layer("[evaluate] gpus of the project", Policy(gpus=project.evaluate.gpus), local=False))
        if stage == "train" and network is not None:
            askers.append(Layer(*network))
        if stage == "prepare":  # last: nothing is granted that this section does not ask for
            askers.append(Layer("[prepare] of the project", _network(project.prepare), local=False))
        try:
            bounds = [Layer(name, file.for_stage(stage)) for name, file in owners]
            found[stage] = combine(sources.ceiling(stage), bounds, askers, _preset(stage))
        except RefusedError as error:
            raise RefusedError(f"{stage} stage: {error.message}", hint=error.hint) from error
        _require_cores(found[stage].policy.limits.cpus)
    if network is not None and network[1].network == "allowlist" and found["train"].policy.network == "none":
        raise RefusedError(
            f"{network[0]}: allowlist is asked for, but no policy names a host that training may reach",
            hint='hosts = ["host:port", ...] in [policy.stage.train] of the project or in --policy FILE',
        )
    return found


def _preset(stage: str) -> Layer:
    """The stage's preset, with no more cores than this machine has."""
    name = sources.preset_of(stage)
    file = sources.preset(name)
    cpus = min(file.limits.cpus, _cores())
    if cpus == file.limits.cpus:
        return Layer(f"preset {name}", file.for_stage(stage))
    fewer = file.limits.model_copy(update={"cpus": cpus})
    return Layer(f"preset {name}, on this machine", file.model_copy(update={"limits": fewer}).for_stage(stage))


def _on_gpus(evaluate: EvaluateConfig) -> StageName:
    """The stage of the evaluation that its GPUs are for."""
    return "model" if evaluate.interface is not None else "evaluate"


def _network(asked: PrepareConfig | None) -> Policy:
    """What the prepare stage reaches: what its section names, or nothing."""
    if asked is None or asked.network == "none":
        return Policy(network="none")
    return Policy(network="allowlist", hosts=asked.hosts)


def _asked(asked: LimitsConfig) -> dict[str, Any]:
    return {field: getattr(asked, key) for key, field in LIMIT_KEYS.items()}


def _limits(values: Mapping[str, Any]) -> Policy:
    """A layer with those limits that are not None: where nothing was said, what others say stays."""
    try:
        _require_cores(values.get("cpus") or 0.0)
        return Policy(limits=Limits(**{name: value for name, value in values.items() if value is not None}))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UsageError(f"limit {first['loc'][0]} = {config.shown(first['input'])}: {first['msg']}") from error
    except (ValueError, OverflowError) as error:
        raise UsageError("a limit is too large a number") from error


def _cores() -> float:
    return float(os.cpu_count() or 1)


def _require_cores(cpus: float) -> None:
    if cpus > _cores():
        raise MachineError(
            f"{cpus:g} cpus are asked for but this machine has {_cores():g}", hint=f"--cpus {_cores():g}"
        )

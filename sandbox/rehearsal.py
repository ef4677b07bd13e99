"""A dry run: go through an experiment's stages on the fake engine, and say what a real one would be asked for.

Nothing is recorded and nothing of the repository is touched: the place is temporary, and so is what the fake
sandboxes "leave": an empty file for each declared output and artifact.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from arsandbox.sandbox import prepared, state
from arsandbox.sandbox.bench import Bench, Measurement
from arsandbox.sandbox.engines.fake import FakeEngine, Script, scripted
from arsandbox.sandbox.engines.port import SandboxSpec
from arsandbox.sandbox.events import Silent
from arsandbox.sandbox.gpu.request import GpuRequest
from arsandbox.sandbox.measure import measure
from arsandbox.sandbox.models import Stage
from arsandbox.sandbox.planning import Plan
from arsandbox.sandbox.run_directory import run_directory
from arsandbox.sandbox.scratch import scratch
from arsandbox.sandbox.settings import Settings
from arsandbox.sandbox.workspace.layers import LayerStore, is_below


def rehearse(plan: Plan) -> list[dict[str, Any]]:
    """One row for each sandbox, in the order of their starts: stage, command, deadline in seconds, limits, network.

    Raises what the real stages would raise before they start anything: UsageError, RefusedError, StateError.
    """
    engine = FakeEngine(scripted(_scripts(plan.settings)))
    # Devices are a real run's: a rehearsal leases none.
    objects, settings = plan.repository.objects, replace(plan.settings, gpus=GpuRequest(), evaluation_gpus=GpuRequest())
    with scratch(state.new_experiment_id()) as place:
        layers = LayerStore(place / "layers", objects)
        with run_directory(place) as run:
            data = prepared.ensure(
                engine, layers, settings, base=plan.base, fixed=plan.fixed, image=plan.image,
                directory=place / "data", run=run, listener=Silent(),
            )  # fmt: skip
            bench = Bench(engine, objects, layers, settings, plan.image, data, Silent(), plan.options.audit)
            measure(bench, plan.candidate, seed=0, run=run, into=Measurement())
    return [_row(spec, settings) for spec in engine.specs]


def _scripts(settings: Settings) -> dict[Stage, Script]:
    project = settings.project
    told = {}
    if project.prepare is not None:
        outputs = project.prepare.outputs
        heldout = [path for path in settings.heldout if is_below(path, outputs)]
        whole = [path for path in outputs if not any(is_below(held, (path,)) for held in heldout)]
        told[Stage.PREPARE] = Script(files=dict.fromkeys([*whole, *heldout], b""))
    artifacts = project.evaluate.artifacts if project.evaluate is not None else ()
    told[Stage.TRAIN] = Script(files=dict.fromkeys(artifacts, b""))
    return told


def _row(spec: SandboxSpec, settings: Settings) -> dict[str, Any]:
    policy = settings.policy_for(spec.stage)
    return {
        "stage": spec.stage.value,
        "command": list(spec.command),
        "deadline_s": spec.deadline_s,
        "limits": spec.limits.model_dump(mode="json"),
        "network": list(policy.hosts) if policy.network == "allowlist" else [],
        "read_only": [mount.target for mount in spec.mounts],
    }

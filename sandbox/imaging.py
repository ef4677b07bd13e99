"""Build a base image, check it in a real sandbox, and only then pin its digest."""

from __future__ import annotations

import tempfile
from pathlib import Path

from arsandbox.images.build import BuiltImage, build_image
from arsandbox.images.catalogue import Catalogue
from arsandbox.images.recipe import load_recipe
from arsandbox.policies.model import MIB, Limits
from arsandbox.sandbox import host, state
from arsandbox.sandbox.engines.port import Engine
from arsandbox.sandbox.errors import MachineError
from arsandbox.sandbox.events import Listener
from arsandbox.sandbox.models import ImageRef, Reason, Stage
from arsandbox.sandbox.stage import StagePlan, run_stage

_CHECK_S = 120.0


def catalogue() -> Catalogue:
    """The images that were built with this state directory."""
    return Catalogue(state.home() / "images.json")


def build_and_pin(name: str, engine: Engine, listener: Listener, *, use_cache: bool = True) -> BuiltImage:
    """Build the image `name`, load it into `engine`, run its entry check, and pin it.

    Raises UsageError for an unknown name, MachineError when a tool is missing or the check fails; the
    old pin, if any, then stays.
    """
    recipe = load_recipe(name)
    if engine.find_image(name) is not None:
        raise MachineError(
            f"the {engine.info().name} engine runs no images: it uses what is installed on this machine",
            hint=f"arsandbox image build {name} --engine docker",
        )
    built = build_image(
        recipe,
        cache=state.home() / "image-layers",
        load=engine.load_image,
        progress=listener.note,
        use_cache=use_cache,
    )
    image = ImageRef(name=name, digest=built.digest)
    with tempfile.TemporaryDirectory(prefix="image-check-", dir=state.home()) as place:
        scratch = Path(place)
        workspace = scratch / "empty"
        workspace.mkdir()
        plan = StagePlan(
            stage=Stage.PREPARE,
            image=image,
            command=recipe.check,
            environment={},
            layers=(workspace,),
            limits=Limits(cpus=1, memory_bytes=512 * MIB, disk_bytes=16 * MIB, disk_inodes=1000, pids=64),
            limit_s=_CHECK_S,
            log=scratch / "check.log",
        )
        identity = state.new_experiment_id()
        labels = host.labels(identity, "")
        with run_stage(engine, plan, experiment=identity, scratch=scratch, labels=labels, listener=listener) as run:
            ended = run.outcome.termination
        if ended.reason is not Reason.COMPLETED:
            lines = plan.log.read_text(errors="replace").strip().splitlines() or [ended.detail]
            raise MachineError(f"image {name} was built but fails its check: {state.printable(lines[-1])}")
    catalogue().pin(built)
    return built

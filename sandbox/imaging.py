"""Build a base image, check it in a real sandbox, and only then pin its digest."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from arsandbox.images.build import BuiltImage, build_image
from arsandbox.images.catalogue import Catalogue
from arsandbox.images.downloads import Transfer
from arsandbox.images.recipe import load_recipe
from arsandbox.policies.model import GIB, MIB, Limits
from arsandbox.sandbox import host, state
from arsandbox.sandbox.engines.port import Engine
from arsandbox.sandbox.errors import MachineError
from arsandbox.sandbox.events import Listener
from arsandbox.sandbox.models import ImageRef, Reason, Stage
from arsandbox.sandbox.stage import StagePlan, run_stage

_CHECK_S = 300.0
# Enough to import PyTorch and to run a compiler.
_CHECK_LIMITS = Limits(cpus=2, memory_bytes=3 * GIB, disk_bytes=16 * MIB, disk_inodes=1000, pids=256)


def catalogue() -> Catalogue:
    """The images that were built with this state directory."""
    return Catalogue(state.home() / "images.json")


def build_and_pin(
    name: str,
    engine: Engine,
    listener: Listener,
    *,
    transfer: Transfer = lambda name, done, total: None,
    use_cache: bool = True,
) -> BuiltImage:
    """Build the image `name`, load it into `engine`, run its entry check, and pin it.

    Raises UsageError for an unknown name, MachineError when a tool is missing or the check fails; the
    old pin, if any, then stays. `transfer` is told of bytes that arrive.
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
        transfer=transfer,
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
            limits=_CHECK_LIMITS,
            limit_s=_CHECK_S,
            log=scratch / "check.log",
        )
        identity = state.new_experiment_id()
        labels = host.labels(identity, "")
        with run_stage(engine, plan, experiment=identity, scratch=scratch, labels=labels, listener=listener) as run:
            ended = run.outcome.termination
        if ended.reason is not Reason.COMPLETED:
            lines = plan.log.read_text(errors="replace").strip().splitlines() or [ended.detail]
            telling = [
                line for line in lines if re.match(r"[\w.]*Error\b", line)
            ] or lines  # libraries add advice below
            raise MachineError(f"image {name} was built but fails its check: {state.printable(telling[-1])}")
    catalogue().pin(built)
    return built

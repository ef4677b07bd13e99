"""Base images: built, pulled or built on a pulled base, checked in a real sandbox, and only then pinned."""

from __future__ import annotations

import os
import platform
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from arsandbox.images.archive import architecture
from arsandbox.images.build import BuiltImage, build_image
from arsandbox.images.catalogue import Catalogue
from arsandbox.images.downloads import Transfer
from arsandbox.images.lockfile import locked_wheels
from arsandbox.images.recipe import RECIPES, available, load_recipe
from arsandbox.images.wheels import borrowed, obtain_wheels
from arsandbox.policies.model import GIB, MIB, Limits
from arsandbox.sandbox import host, state
from arsandbox.sandbox.engines.port import Engine, ImageExchanger, ImageFacts
from arsandbox.sandbox.errors import MachineError, RefusedError, StateError, UsageError
from arsandbox.sandbox.events import Listener
from arsandbox.sandbox.models import ImageRef, Reason, Stage
from arsandbox.sandbox.scratch import scratch
from arsandbox.sandbox.stage import StagePlan, run_stage

_CHECK_S = 300.0
# Enough to import PyTorch and to run a compiler.
_CHECK_LIMITS = Limits(cpus=2, memory_bytes=3 * GIB, disk_bytes=16 * MIB, disk_inodes=1000, pids=256)
_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]{0,99}")
_REFERENCE = re.compile(r"[a-z0-9][a-z0-9.-]*(:[0-9]{1,5})?(/[a-z0-9][a-z0-9._-]*)*@sha256:[0-9a-f]{64}")
# What every run needs of an image: process 1 is a Python program of ours, and the code is Python.
_OWN_CHECK = ("python3", "-c", "import os, sys; assert os.getuid() != 0 and sys.version_info >= (3, 8), sys.version")
_VERSION = ("python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])")


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
    _run_check(engine, ImageRef(name=name, digest=built.digest), recipe.check, listener)
    catalogue().pin(built)
    return built


def add_and_pin(name: str, reference: str, engine: Engine, listener: Listener) -> BuiltImage:
    """Pull the user's own image `reference` ("REPOSITORY@sha256:HEX"), check that it can run, and pin it as `name`.

    Raises UsageError for a name that a recipe has or a reference without a digest, RefusedError for an image that
    declares volumes, MachineError where it cannot be pulled or its check fails.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"image name {name!r}: not usable", hint="small letters, digits, and + . -, like my-image")
    if name in available():
        raise UsageError(f"image name {name!r} belongs to a recipe", hint="choose another name: arsandbox image list")
    started = time.monotonic()
    found = _pull(reference, engine, listener)
    _run_check(engine, ImageRef(name=name, digest=found.digest), _OWN_CHECK, listener)
    return _pin(name, reference, found, "", started)


def build_on(
    name: str,
    reference: str,
    engine: Engine,
    listener: Listener,
    *,
    transfer: Transfer = lambda name, done, total: None,
) -> BuiltImage:
    """Install the wheels of the recipe `name` on the base `reference` by Dockerfile.train, check and pin it.

    The wheels come from where `build_and_pin` finds them; the build itself has no network. Unlike there, the digest
    is another one every time. Raises as `add_and_pin` and `build_and_pin` do.
    """
    recipe = load_recipe(name)
    started = time.monotonic()
    base = _pull(reference, engine, listener)
    assert isinstance(engine, ImageExchanger)  # noqa: S101 - it has just pulled
    python = _run_check(engine, ImageRef(name=reference, digest=base.digest), _VERSION, listener)
    machine = platform.machine()
    locked = locked_wheels(recipe.requirements, python=python, machine=machine)
    downloads = state.home() / "image-layers" / "wheels"
    with borrowed(downloads), scratch(state.new_experiment_id()) as context:
        wheels = obtain_wheels(locked, python=python, machine=machine, store=downloads, transfer=transfer)
        try:
            shutil.copyfile(_dockerfile(), context / "Dockerfile")
            (context / "images" / name).mkdir(parents=True)
            (context / "images" / name / "requirements.lock").write_text(recipe.requirements, encoding="utf-8")
            (context / "wheelhouse").mkdir()
            for wheel in wheels:
                os.link(wheel, context / "wheelhouse" / wheel.name)
        except OSError as error:
            raise StateError(f"cannot lay out the build in {context}: {error.strerror}") from error
        listener.note(f"building on {reference}")
        arguments = {"BASE": base.digest, "PIP_NO_INDEX": "1", "IMAGE": name, "MODULES": "sys"}
        found = engine.derive_image(context, arguments)
    check = ("python3", *recipe.check[1:]) if recipe.check[0] == "python" else recipe.check
    _run_check(engine, ImageRef(name=name, digest=found.digest), check, listener)
    return _pin(name, reference, found, recipe.digest, started)


def _pin(name: str, reference: str, found: ImageFacts, recipe_sha256: str, started: float) -> BuiltImage:
    built = BuiltImage(
        name=name,
        digest=found.digest,
        size_bytes=found.size_bytes,
        recipe_sha256=recipe_sha256,
        packages=(),
        built_seconds=round(time.monotonic() - started, 3),
        reference=reference,
    )
    catalogue().pin(built)
    return built


def _pull(reference: str, engine: Engine, listener: Listener) -> ImageFacts:
    if not _REFERENCE.fullmatch(reference):
        raise UsageError(
            f"{reference!r} does not name an image by its digest",
            hint="write REPOSITORY@sha256:HEX; `docker pull REPOSITORY:TAG` prints the digest of a tag",
        )
    if not isinstance(engine, ImageExchanger):
        raise MachineError(f"the {engine.info().name} engine pulls no images", hint="--engine docker")
    listener.note(f"pulling {reference}")
    found = engine.pull_image(reference)
    wanted = architecture(platform.machine())
    if (found.system, found.architecture) != ("linux", wanted):
        raise MachineError(f"{reference} is for {found.system}/{found.architecture}, this machine is linux/{wanted}")
    if found.volumes:
        raise RefusedError(
            f"{reference} declares volumes ({', '.join(found.volumes)}): they would be writable beyond every limit",
            hint="build it again without VOLUME",
        )
    return found


def _run_check(engine: Engine, image: ImageRef, command: Sequence[str], listener: Listener) -> str:
    """The last line that `command` says in `image`, in a sandbox like any other. Raises MachineError if it fails."""
    identity = state.new_experiment_id()
    with scratch(identity) as place:
        workspace = place / "empty"
        workspace.mkdir()
        plan = StagePlan(
            stage=Stage.PREPARE,
            image=image,
            command=command,
            environment={},
            layers=(workspace,),
            limits=_CHECK_LIMITS,
            limit_s=_CHECK_S,
            log=place / "check.log",
        )
        labels = host.labels(identity, "")
        with run_stage(engine, plan, experiment=identity, scratch=place, labels=labels, listener=listener) as run:
            ended = run.outcome.termination
        lines = plan.log.read_text(errors="replace").strip().splitlines()
        if ended.reason is not Reason.COMPLETED:
            telling = [
                line for line in lines if re.match(r"[\w.]*Error\b", line)
            ] or lines  # libraries add advice below
            said = state.printable((telling or [ended.detail])[-1])
            raise MachineError(f"image {image.name} is here but fails its check: {said}")
        return state.printable(lines[-1]) if lines else ""


def _dockerfile() -> Path:
    """Dockerfile.train: beside the recipes where arsandbox is installed, at the root of a checkout."""
    beside = RECIPES / "Dockerfile.train"
    return beside if beside.exists() else RECIPES.resolve().parent / "Dockerfile.train"

"""Resolve a request against the repository before anything runs: base, config, image, candidate, champion."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from arsandbox.images import lock
from arsandbox.sandbox import candidate as candidates
from arsandbox.sandbox import prepared, promotion, rebuild
from arsandbox.sandbox import settings as configuration
from arsandbox.sandbox.candidate import Candidate
from arsandbox.sandbox.config import DEFAULT_ENGINE
from arsandbox.sandbox.engines.port import Engine
from arsandbox.sandbox.errors import MachineError, UsageError
from arsandbox.sandbox.gpu.grant import require_devices
from arsandbox.sandbox.models import Finding, ImageRef
from arsandbox.sandbox.objects import ObjectStore
from arsandbox.sandbox.reapply import Reapplied
from arsandbox.sandbox.record import Record, Round
from arsandbox.sandbox.repository import Repository
from arsandbox.sandbox.settings import Options, Settings
from arsandbox.sandbox.slots import TrainingSlots
from arsandbox.sandbox.workspace.layers import is_below

_AUTORESEARCH_LAYOUT = ("prepare.py", "train.py", "program.md")

# The digest by which a dry run's `find_image` names an image that is not here: no image has it.
NOT_BUILT = "sha256:" + "0" * 64


@dataclass(frozen=True)
class Request:
    """What to run: at most one of `patch`, `commit` and `diff` (a patch's bytes); neither means the working tree."""

    path: Path
    options: Options = field(default_factory=Options)
    base: str = "HEAD"
    patch: Path | None = None
    commit: str | None = None
    diff: bytes | None = None


@dataclass(frozen=True)
class Champion:
    """The commit to beat, and the promotion branch's tip when that was decided (None: no such branch)."""

    commit: str
    tip: str | None


@dataclass(frozen=True)
class Plan:
    """A request resolved against the repository; nothing has run yet.

    `findings` are what is known of the candidate before it runs. `moved_from` is the experiment that measured the same
    edit on an older champion.
    """

    repository: Repository
    base: str
    settings: Settings
    image: ImageRef
    candidate: Candidate
    branch: str
    champion: Champion
    options: Options
    fixed: tuple[str, tuple[str, ...]]
    refusals: tuple[str, ...]
    preferred_branch: str
    round: Round | None = None
    slots: TrainingSlots | None = None
    findings: tuple[Finding, ...] = ()
    moved_from: str | None = None

    def with_edit(self, edit: Reapplied, findings: Sequence[Finding] = ()) -> Plan:
        """This plan with another candidate over the same base; what the edit replaces is said among the findings."""
        said = (Finding(code="replaces", detail=note) for note in edit.notes)
        rules, policy = self.settings.rules, self.settings.policy
        refusals = candidates.refusals(edit.candidate, self.repository.objects, rules, policy)
        return replace(self, candidate=edit.candidate, findings=(*findings, *said), refusals=tuple(refusals))

    def champion_now(self) -> Champion:
        """The champion as the branch stands at this moment."""
        return champion_of(
            self.repository, self.base, self.branch, self.settings, self.fixed[0], preferred=self.preferred_branch
        )


def plan(request: Request, *, find_image: Callable[[str], ImageRef]) -> Plan:
    """Resolve `request`: base, config, image, frozen candidate, promotion branch. Runs nothing.

    `find_image` maps an image's name to its ImageRef. Raises UsageError, RefusedError, MachineError.
    """
    repository = Repository.open(request.path)
    base = repository.head() if request.base == "HEAD" else repository.resolve(request.base)
    objects, options = repository.objects, request.options
    project = configuration.load_project(objects, base)
    if project is None and options.fallback is not None:
        project = options.fallback(objects, base)
    if project is None and (repository.worktree / "arsandbox.toml").exists() and not options.metric:
        raise UsageError(
            "arsandbox.toml is not committed, and settings are read from the base commit",
            hint="git add arsandbox.toml && git commit -m 'add arsandbox.toml'",
        )
    settings = configuration.resolve(project, options)
    image = _image(settings, find_image)
    _require_locked(objects, base, settings, image)
    fixed = prepared.fixed_tree(objects, base, settings, repository.state / "fixed")
    _require_heldout(repository, base, settings)
    if request.patch is not None:
        candidate = candidates.from_patch(objects, base, request.patch)
    elif request.diff is not None:
        candidate = candidates.from_diff(objects, base, request.diff, name="the proposal")
    elif request.commit is not None:
        candidate = candidates.from_commit(objects, base, repository.resolve(request.commit))
    else:
        candidate = candidates.from_worktree(repository, base, settings.rules)
    preferred, branch = _branches(repository, base, options.tag)
    return Plan(
        repository=repository,
        base=base,
        settings=settings,
        image=image,
        candidate=candidate,
        branch=branch,
        champion=champion_of(repository, base, branch, settings, fixed[0], preferred=preferred),
        options=options,
        fixed=fixed,
        preferred_branch=preferred,
        refusals=tuple(candidates.refusals(candidate, objects, settings.rules, settings.policy)),
    )


def engine_name(path: Path, base: str = "HEAD") -> str:
    """The engine that the config of `base` names; the default where it has none. Raises UsageError."""
    repository = Repository.open(path)
    commit = repository.head() if base == "HEAD" else repository.resolve(base)
    project = configuration.load_project(repository.objects, commit)
    return DEFAULT_ENGINE if project is None else project.engine


def _image(settings: Settings, find_image: Callable[[str], ImageRef]) -> ImageRef:
    """The image; where it is not there, what GPUs need is said first: to build it would not help without them."""
    try:
        return find_image(settings.project.image)
    except MachineError:
        if settings.needed_gpus.number:
            require_devices(settings.needed_gpus)
        raise


def plan_of(repository: Repository, record: Record, options: Options) -> Plan:
    """The plan that `record` was made by, against the champion of today.

    Of `options` only what concerns the promotion counts. Raises RefusedError for what was changed since,
    MachineError for what is gone, UsageError when branch and base have gone different ways.
    """
    settings = rebuild.settings_of(repository, record)
    candidate = rebuild.candidate_of(repository, record)
    base = record.base_commit
    fixed = prepared.fixed_tree(repository.objects, base, settings, repository.state / "fixed")
    return Plan(
        repository=repository,
        base=base,
        settings=settings,
        image=record.image,
        candidate=candidate,
        branch=record.branch,
        champion=champion_of(repository, base, record.branch, settings, fixed[0]),
        options=options,
        fixed=fixed,
        preferred_branch=record.branch,
        refusals=tuple(candidates.refusals(candidate, repository.objects, settings.rules, settings.policy)),
    )


def require_image(engine: Engine, image: ImageRef) -> None:
    """Raises MachineError unless the engine holds the image with that digest."""
    if engine.has_image(image.digest):
        return
    own = engine.find_image(image.name)
    if own is not None:
        raise MachineError(
            f"the {engine.info().name} engine has {own.name} ({own.digest[:19]}…), but this ran with {image.name} "
            f"({image.digest[:19]}…)",
            hint="use the engine of the record, with the same packages installed; or run the experiment anew",
        )
    raise MachineError(
        f"image {image.name} ({image.digest[:19]}…) is pinned but not in the engine",
        hint=f"arsandbox image build {image.name}",
    )


def _require_locked(objects: ObjectStore, base: str, settings: Settings, image: ImageRef) -> None:
    """Raises RefusedError where the base commit's arsandbox.lock does not lock that image to that digest.

    An engine that brings its own base gives it a name of its own, and there is no image to lock. Of an image that is
    not built (a dry run) only the name is looked for: what will be built may be the locked one.
    """
    data = objects.read(f"{base}:{lock.FILE_NAME}")
    if data is not None and image.name == settings.project.image:
        where = f"{lock.FILE_NAME} at {base[:12]}"
        digest = None if image.digest == NOT_BUILT else image.digest
        lock.parse(data, where).require(image.name, digest, where)


def _require_heldout(repository: Repository, base: str, settings: Settings) -> None:
    """Raises UsageError for held-out data that does not exist: misspelt, it would stay visible to training."""
    outputs = settings.project.prepare.outputs if settings.project.prepare else ()
    for path in settings.heldout:
        if not is_below(path, outputs) and not repository.objects.files_below(base, path):
            raise UsageError(
                f"evaluate.data names {path!r}, which is neither in the base commit nor below [prepare] outputs",
                hint="held-out data must be one of them, or training could see it",
            )


def default_tag() -> str:
    """The promotion branch's tag where none is given: month and day."""
    return datetime.now().astimezone().strftime("%b%d").lower()


def _branches(repository: Repository, base: str, tag: str | None) -> tuple[str, str]:
    """The promotion branch by the layout's convention, and the one to use: never one that is checked out."""
    name = tag or default_tag()
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,80}", name) or ".." in name or name.endswith((".lock", ".")):
        raise UsageError(f"--tag {name!r}: not usable in a branch name", hint="letters, digits, - and _")
    paths = {entry for entry in _AUTORESEARCH_LAYOUT if repository.objects.read(f"{base}:{entry}") is not None}
    layout = "autoresearch" if len(paths) == len(_AUTORESEARCH_LAYOUT) else "arsandbox"
    return f"{layout}/{name}", promotion.branch_name(repository, layout=layout, tag=name)


def champion_of(
    repository: Repository, base: str, branch: str, settings: Settings, fixed_digest: str, *, preferred: str = ""
) -> Champion:
    """The branch's tip, or `base` when there is none or the base already holds it.

    While promotions are diverted to `branch`, since `preferred` is checked out, the latter's tip counts too.
    Raises UsageError when branch and base have gone different ways.
    """
    tip = repository.branch_tip(branch)
    best = tip or (repository.branch_tip(preferred) if preferred else None)
    if best is None or best == base or repository.is_ancestor(best, base):
        return Champion(base, tip)
    if repository.is_ancestor(base, best):
        theirs, _ = prepared.fixed_tree(repository.objects, best, settings, repository.state / "fixed")
        if theirs == fixed_digest:
            return Champion(best, tip)
    raise UsageError(
        f"the promotion branch {branch} and the base {base[:12]} have gone different ways",
        hint=f"start a new branch with --tag NAME, or: git merge {branch}",
    )

"""What one experiment runs with: the base commit's config, with the command line's options over it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arsandbox.images import lock
from arsandbox.policies.edits import EditRules
from arsandbox.policies.meet import Effective
from arsandbox.policies.model import RESERVED, Policy, StageName
from arsandbox.policies.rules import Directories, Names
from arsandbox.sandbox import config
from arsandbox.sandbox.caches.kinds import default_target, variables
from arsandbox.sandbox.caches.store import CacheStore, CacheVersion
from arsandbox.sandbox.canonical import digest
from arsandbox.sandbox.config import ProjectConfig
from arsandbox.sandbox.decision.rules import Rule
from arsandbox.sandbox.engines.port import ReadOnlyMount
from arsandbox.sandbox.errors import MachineError, RefusedError, UsageError
from arsandbox.sandbox.gpu.request import EVALUATE, GpuRequest
from arsandbox.sandbox.gpu.request import default_for as default_gpus
from arsandbox.sandbox.gpu.request import parse as parse_gpus
from arsandbox.sandbox.models import Stage
from arsandbox.sandbox.objects import ObjectStore
from arsandbox.sandbox.policy_sources import stage_policies
from arsandbox.sandbox.quantities import parse_duration
from arsandbox.sandbox.record import CacheUse

_LEAST_GRACE_S = 10.0
# Keys of the config that do not change what is measured, or that count by what they led to (image, gpus, ...).
_UNMEASURED = {
    "decision", "editable", "protected", "image", "engine", "measurement", "policy", "mounts", "gpus", "caches",
}  # fmt: skip


@dataclass(frozen=True)
class Options:
    """The command line's word; None where nothing was said. Durations in seconds, sizes in bytes.

    `network` is who asks for the training stage's network, and what of it. `fallback` makes the config where the base
    commit has none; `caches` names versions of caches by their digest, where the newest is not the one.
    """

    image: str | None = None
    budget_s: float | None = None
    grace_s: float | None = None
    command: tuple[str, ...] = ()
    editable: tuple[str, ...] = ()
    metric: str | None = None
    goal: str | None = None
    limits: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    tag: str | None = None
    description: str = ""
    promote: bool = True
    accept_self_reported: bool = False
    audit: bool = False
    policy: str | None = None
    gpus: str | None = None
    network: tuple[str, Policy] | None = None
    caches: Mapping[str, str] = field(default_factory=dict)
    fallback: Callable[[ObjectStore, str], ProjectConfig] | None = None


@dataclass(frozen=True)
class Settings:
    """Resolved and validated; everything that a run depends on but the candidate itself."""

    project: ProjectConfig
    policies: Mapping[str, Effective]
    budget_s: float
    grace_s: float
    gpus: GpuRequest
    caches: tuple[CacheVersion, ...] = ()
    evaluation_gpus: GpuRequest = field(default_factory=GpuRequest)

    @property
    def policy(self) -> Policy:
        """The training stage's policy; what it says of edits and promotion holds for the experiment."""
        return self.policy_for(Stage.TRAIN)

    def policy_for(self, stage: Stage | StageName) -> Policy:
        """The policy that holds for `stage`."""
        return self.policies[str(stage)].policy

    @property
    def needed_gpus(self) -> GpuRequest:
        """The larger request of training's and the evaluation's: a machine that can serve it can serve both."""
        return max(self.gpus, self.evaluation_gpus, key=lambda one: one.number)

    @property
    def audits(self) -> bool:
        """Whether every candidate is evaluated at L4 unasked: nothing less may be promoted, and a model answers."""
        askable = self.project.evaluate is not None and self.project.evaluate.interface == "lm"
        return askable and self.policy.promote_trust == "L4"

    @property
    def used_policies(self) -> tuple[Policy, ...]:
        """The policies of the stages that this project has."""
        judging = [Stage.EVALUATE, Stage.MODEL, Stage.SCORE] if self.project.evaluate else []
        preparing = [Stage.PREPARE] if self.project.prepare else []
        return tuple(self.policy_for(stage) for stage in (*preparing, Stage.TRAIN, *judging))

    @property
    def deadline_s(self) -> float:
        """Seconds after which the training stage is ended."""
        return self.budget_s + self.grace_s

    @property
    def rules(self) -> EditRules:
        """Which edits are allowed; the config itself, what evaluates and what it holds out are always protected."""
        ours = (config.FILE_NAME, lock.FILE_NAME)
        evaluating = (*self.project.metric.evaluator, *self.heldout)
        protected = (*self.project.protected, *evaluating, *self.policy.protected, *ours)
        return EditRules(editable=self.project.editable, protected=protected, bounds=self.policy.editable)

    @property
    def rule(self) -> Rule:
        """How a result is judged."""
        asked, metric = self.project.decision, self.project.metric
        return Rule(asked.rule, metric.name, metric.goal, asked.min_delta, asked.prefer_simpler)

    @property
    def heldout(self) -> tuple[str, ...]:
        """Paths that only the evaluation may see."""
        return self.project.evaluate.data if self.project.evaluate else ()

    def mounts_for(self, stage: Stage) -> tuple[ReadOnlyMount, ...]:
        """The host directories that `stage` sees, read-only, where they are on the host.

        Raises RefusedError for one that the stage's policy does not allow, MachineError for one that is not there.
        """
        named = tuple(_mount(path, stage, self.policy_for(stage)) for path in self.project.mounts)
        caches = (one for one in self.caches_for(stage) if one.layer is None)
        return (*named, *(ReadOnlyMount(source=one.tree, target=self._cache_target(one)) for one in caches))

    def caches_for(self, stage: Stage) -> tuple[CacheVersion, ...]:
        """The caches that `stage` sees."""
        return tuple(one for one in self.caches if stage.value in self.project.caches[one.name].seen_by())

    def cache_layers(self, stage: Stage) -> tuple[Path, ...]:
        """The compiled caches that `stage` finds below its workspace, as lower layers."""
        return tuple(one.layer for one in self.caches_for(stage) if one.layer is not None)

    def environment_for(self, stage: Stage) -> dict[str, str]:
        """The project's variables for `stage`, over those by which libraries find its caches."""
        found: dict[str, str] = {}
        for one in self.caches_for(stage):
            found |= variables(one.manifest.kind, self._cache_target(one))
        return {**found, **self.project.environment}

    def cache_uses(self) -> tuple[CacheUse, ...]:
        """What is recorded of the caches."""
        return tuple(
            CacheUse(
                name=one.name, kind=one.manifest.kind, sha256=one.sha256, stages=self.project.caches[one.name].seen_by()
            )
            for one in self.caches
        )

    def _cache_target(self, cache: CacheVersion) -> str:
        return self.project.caches[cache.name].target or default_target(cache.name, cache.manifest.kind)

    def effective(self) -> dict[str, Any]:
        """The policy as it is recorded, with the edit rules that the candidate passed."""
        edits = {"editable": list(self.rules.editable), "protected": list(self.rules.protected)}
        asked = {"asked_gpus": str(self.gpus)} if self.gpus.number else {}
        return {**self.policy.model_dump(mode="json"), "edits": edits, **asked}

    def digest(self, *, image: str, fixed_tree: str, data: str | None) -> str:
        """Names the measuring set-up: values are comparable where, and only where, this is equal."""
        project = self.project.model_dump(
            mode="json",
            exclude=_UNMEASURED,
        )
        if project["evaluate"] is not None and not project["evaluate"]["gpus"]:
            del project["evaluate"]["gpus"]  # none: as it was named before there were any
        if self.project.mounts:
            project["mounts"] = list(self.project.mounts)
        if self.caches:
            project["caches"] = [one.model_dump(mode="json") for one in self.cache_uses()]
        if self.gpus.number:
            project["gpus"] = self.gpus.number
        if self.policy.network != "none":
            project["hosts"] = list(self.policy.hosts)
        # The time and the GPU memory that are allowed end a run; they do not change what it measures.
        limits = self.policy.limits.model_dump(mode="json", exclude={"wall_s", "vram_bytes"})
        document = {
            "project": {**project, "budget": self.budget_s, "grace": self.grace_s},
            "limits": limits,
            "image": image,
            "fixed_tree": fixed_tree,
            "data": data,
        }
        return digest(document)


def load_project(objects: ObjectStore, base: str) -> ProjectConfig | None:
    """The config of the commit `base`, or None where it has none. Raises UsageError."""
    text = objects.read(f"{base}:{config.FILE_NAME}")
    if text is not None:
        return config.parse(_decoded(text, config.FILE_NAME), f"{config.FILE_NAME} at {base[:12]}")
    text = objects.read(f"{base}:pyproject.toml")
    if text is None:
        return None
    return config.parse_pyproject(_decoded(text, "pyproject.toml"), f"pyproject.toml at {base[:12]}")


def resolve(project: ProjectConfig | None, options: Options) -> Settings:
    """Combine config and options. Raises UsageError naming what is wrong or missing."""
    if project is None and not (options.metric and options.command):
        raise UsageError(
            "the base commit has no arsandbox.toml, so --metric NAME and a command after -- are needed",
            hint="arsandbox init && git add arsandbox.toml && git commit -m 'add arsandbox.toml'",
        )
    project = _with_options(project or ProjectConfig(), options)
    if options.audit and (project.evaluate is None or project.evaluate.interface != "lm"):
        raise UsageError(
            '--audit needs a model that can be asked: [evaluate] with interface = "lm"',
            hint="docs/integrity.md says how to move a project there",
        )
    gpus, asker = asked_gpus(project, options.gpus)
    policies = stage_policies(
        project, limits=options.limits, named=options.policy, gpus=(asker, gpus.number), network=options.network
    )
    budget = options.budget_s if options.budget_s is not None else project.budget
    if budget <= 0:
        raise UsageError("--budget must be longer than nothing", hint="write it like 90s, 5m or 1h30m")
    grace = options.grace_s if options.grace_s is not None else project.grace
    if grace is None:
        grace = max(_LEAST_GRACE_S, budget / 10)
    evaluating = _evaluation_gpus(project, gpus, options.gpus)
    settings = Settings(project, policies, budget, grace, gpus, _caches(project, options), evaluating)
    _require_allowed(settings)
    return settings


def asked_gpus(project: ProjectConfig, option: str | None = None) -> tuple[GpuRequest, str]:
    """What is asked for, and by whom: the `option`, else the project, else the image. Raises UsageError."""
    for asker, text in (("--gpus", option), ("gpus of the project", project.gpus)):
        if text is not None:
            return parse_gpus(text, what=asker), asker
    return default_gpus(project.image), f"the image {project.image} (--gpus none leaves it out)"


def _evaluation_gpus(project: ProjectConfig, trained_on: GpuRequest, option: str | None) -> GpuRequest:
    """What the evaluation asks for: some of the devices that training's request names, where it names any."""
    number = project.evaluate.gpus if project.evaluate is not None else 0
    if not number:
        return GpuRequest()
    if option is not None and not trained_on.number:
        raise UsageError(
            f"--gpus {option}: the evaluation asks for {number} ([evaluate] gpus), so this cannot run without",
            hint='leave --gpus out; gpus = "none" in the config is for training alone',
        )
    if trained_on.uuids and number > trained_on.number:
        raise UsageError(
            f"[evaluate] gpus = {number}, but only {trained_on.number} are named for this run ({trained_on})",
            hint="name more of them, or ask for a number instead: --gpus 1",
        )
    if trained_on.uuids:
        return GpuRequest(uuids=trained_on.uuids[:number], key=EVALUATE)
    return GpuRequest(count=number, key=EVALUATE)


def _with_options(project: ProjectConfig, options: Options) -> ProjectConfig:
    metric = project.metric.model_dump()
    if options.metric:
        metric["name"] = options.metric
    if options.goal:
        metric["goal"] = options.goal
    changed: dict[str, Any] = {**project.model_dump(exclude={"policy"}), "metric": metric}
    if project.policy is not None:  # only what it says: what is unset is left to the other sources
        changed["policy"] = project.policy.model_dump(exclude_unset=True)
    for name, value in (
        ("image", options.image),
        ("command", options.command),
        ("editable", options.editable),
    ):
        if value:
            changed[name] = value
    return config.from_table(changed, "command line")


def _caches(project: ProjectConfig, options: Options) -> tuple[CacheVersion, ...]:
    """The project's caches, every file compared; a version that a record or the config names is that one."""
    if not project.caches:
        return ()
    store = CacheStore()
    return tuple(
        store.open(name, kind=cache.kind, sha256=options.caches.get(name) or cache.sha256 or "")
        for name, cache in sorted(project.caches.items())
    )


def _mount(path: str, stage: Stage, policy: Policy) -> ReadOnlyMount:
    real = Path(path).resolve()  # what a link leads to is what is seen
    if not any(Directories().covers(one, str(real)) for one in policy.mounts):
        raise RefusedError(
            f"mounts: {path} ({real}) is not allowed for the {stage.value} stage; the policy's mounts: {policy.mounts}",
            hint="the machine's owner allows it by `mounts` in the policy file, or: --policy FILE",
        )
    if not real.is_dir():
        raise MachineError(f"mounts: {path} is not a directory of this machine")
    return ReadOnlyMount(source=real, target=path)


def _require_allowed(settings: Settings) -> None:
    """Raises RefusedError for a variable or a time that the config asks for and the policy does not allow."""
    project = settings.project
    for name in project.environment:
        if RESERVED.match(name) or not any(Names().covers(one, name) for one in settings.policy.environment):
            raise RefusedError(
                f"[environment] sets {name}, but the policy lets only {list(settings.policy.environment)} pass",
                hint="leave it out, or have the policy's `environment` list it",
            )
    for name, cache in project.caches.items():
        for seeing in cache.seen_by():
            allowed = settings.policies[seeing].policy.caches
            if not any(Names().covers(one, cache.kind) for one in allowed):
                raise RefusedError(
                    f"[caches.{name}] is of kind {cache.kind}, but the {seeing} stage may see {list(allowed)} alone",
                    hint="leave that stage out of its `stages`, or have the policy's `caches` list it",
                )
    for mounting in (
        Stage.TRAIN,
        *([Stage.PREPARE] if project.prepare else []),
        *([Stage.EVALUATE] if project.evaluate else []),
    ):
        settings.mounts_for(mounting)
    times: list[tuple[StageName, str, float]] = [("train", "budget and grace", settings.deadline_s)]
    if project.prepare:
        times.append(("prepare", "[prepare] timeout", project.prepare.timeout))
    if project.evaluate:
        times.append(("evaluate", "[evaluate] timeout", project.evaluate.timeout))
    for stage, what, seconds in times:
        most = settings.policy_for(stage).limits.wall_s
        if seconds > most:
            raise RefusedError(
                f"{what}: {seconds:g} s, but the policy allows the {stage} stage at most {most:g} s (limits.wall_s)",
                hint="ask for less time, or have the policy allow more",
            )


def _decoded(text: bytes, name: str) -> str:
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name}: is not UTF-8 text") from error


def network_option(text: str | None) -> tuple[str, Policy] | None:
    """What --network asks for, or None where it was not given. Raises UsageError."""
    match text:
        case None:
            return None
        case "none" | "allowlist":
            return "--network", Policy(network=text)
        case _:
            raise UsageError(f"--network {text!r}: must be none or allowlist", hint="--network none")


def duration_option(text: str | None, name: str) -> float | None:
    """Seconds in an option's value, or None where it was not given. Raises UsageError naming the option."""
    return None if text is None else parse_duration(text, what=name)

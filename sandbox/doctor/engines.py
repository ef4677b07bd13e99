"""The engine that was asked for, the other one, and what each keeps of its promises here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from arsandbox.images import lock
from arsandbox.policies.seccomp import bpf_program
from arsandbox.sandbox import advisories
from arsandbox.sandbox.doctor.rows import Row
from arsandbox.sandbox.engines.port import Described, Engine, EngineFacts
from arsandbox.sandbox.engines.registry import open_engine
from arsandbox.sandbox.errors import ArsandboxError, MachineError
from arsandbox.sandbox.imaging import catalogue
from arsandbox.sandbox.models import Guarantee, Guarantees
from arsandbox.sandbox.repository import Repository

_NESTED = (
    "use --engine docker; where this is itself a container, start it with --security-opt seccomp=unconfined "
    "--security-opt systempaths=unconfined"
)


_PACKAGES = {"runc": "runc", advisories.TOOLKIT: "nvidia-container-toolkit"}


@dataclass(frozen=True)
class Opened:
    """The engine by the name that the user gave (`name` is then its own), or why it cannot be opened."""

    name: str
    engine: Engine | None = None
    facts: EngineFacts | None = None
    error: ArsandboxError | None = None

    @classmethod
    def of(cls, name: str) -> Opened:
        """Open it, once."""
        try:
            found = open_engine(name)
            facts = found.facts() if isinstance(found, Described) else None
            return cls(found.info().name, found, facts)
        except ArsandboxError as error:
            return cls(name, error=error)


def engine(opened: Opened) -> Row:
    """Whether it can be used."""
    if opened.error is not None or opened.engine is None:
        message, hint = (opened.error.message, opened.error.hint) if opened.error else ("not opened", "")
        return Row(name="engine", status="missing", detail=message, fix=hint)
    info = opened.engine.info()
    return Row(name="engine", status="ok", detail=f"{info.name} {info.version}, runtime {info.runtime}")


def other_engine(opened: Opened) -> Row:
    """The engine that was not asked for: nothing depends on it, but it may be what helps."""
    other = "docker" if opened.name == "embedded" else "embedded"
    try:
        info = open_engine(other).info()
    except ArsandboxError as error:
        return Row(name=other, status="warning", detail=error.message, fix=_not_in_circles(error.hint))
    return Row(name=other, status="ok", detail=f"{info.version} would do as well (--engine {other})")


def promises(opened: Opened) -> Row:
    """What the engine does not enforce here, and what would change that."""
    if opened.engine is None:
        return _unknown("promises", opened)
    info = opened.engine.info()
    kept = info.guarantees or Guarantees(**dict.fromkeys(Guarantees.model_fields, Guarantee.NOT_OFFERED))
    if not kept.weak():
        return Row(name="promises", status="ok", detail="every one is enforced")
    detail = ", ".join(f"{promise}: {found.value}" for promise, found in kept.weak().items())
    limited = kept.memory is Guarantee.ENFORCED and kept.pids is Guarantee.ENFORCED
    fix = "" if limited else "systemd-run --user --scope -p Delegate=yes arsandbox …, or run arsandbox as root"
    return Row(name="promises", status="ok" if limited else "warning", detail=detail, fix=fix)


def known_holes() -> Row:
    """Whether the programs that make the sandboxes have holes that are known (advisories.py)."""
    found = {"runc": advisories.runc_version(), advisories.TOOLKIT: advisories.toolkit_version()}
    judged = [
        (advisory, advisories.judge(advisory, *installed))
        for advisory in advisories.ADVISORIES
        if (installed := found[advisory.program]) is not None
    ]
    told = ", ".join(f"{name} {one[1] or one[0]}" for name, one in found.items() if one) or "runc is not installed"
    for status, certainty, words in (
        ("missing", "broken", "has a known hole"),
        ("warning", "unknown", "may have a known hole, unless the distribution has fixed it"),
    ):
        holes = [advisory for advisory, verdict in judged if verdict == certainty]
        if holes:
            names = "; ".join(f"{one.program}: {one.cve}" for one in holes)
            least = "; ".join(f"{one.program} {' or '.join(one.fixed)} or later" for one in holes)
            packages = sorted({_PACKAGES[one.program] for one in holes})
            fix = f"sudo apt-get install --only-upgrade {' '.join(packages)} (to {least})"
            return Row(name="versions", status=status, detail=f"{told}: {words} ({names})", fix=fix)
    return Row(name="versions", status="ok", detail=told)


def runtimes(opened: Opened) -> Row:
    """What the engine can run sandboxes under; the policy's `isolation` may ask for more than the default."""
    if opened.engine is None:
        return _unknown("runtimes", opened)
    info = opened.engine.info()
    if opened.facts is None:
        return Row(name="runtimes", status="ok", detail=f"{info.runtime} alone")
    known = ", ".join(name for name in opened.facts.runtimes if not name.startswith("io.containerd."))
    return Row(name="runtimes", status="ok", detail=f"{known} (default {info.runtime})")


def seccomp(opened: Opened) -> Row:
    """Whether our system call filter can be loaded."""
    if opened.name == "embedded":
        try:
            return Row(name="seccomp", status="ok", detail=f"a filter of {len(bpf_program()) // 8} instructions")
        except MachineError as error:
            return Row(name="seccomp", status="missing", detail=error.message, fix=error.hint)
    if opened.facts is None:
        return _unknown("seccomp", opened)
    if opened.facts.seccomp:
        return Row(name="seccomp", status="ok", detail="the engine loads filters")
    fix = "use a Docker engine with seccomp (the distribution's docker.io has it)"
    return Row(name="seccomp", status="missing", detail="the engine cannot load a filter", fix=fix)


def user_namespaces(opened: Opened) -> Row:
    """Whether an unprivileged process gets one: the embedded engine is made of them, Docker needs none."""
    from arsandbox.sandbox.engines.embedded import program

    try:
        reason = program.obstacle()
    except MachineError as error:
        reason = (f"they cannot be tried: {error.message}", error.hint)
    if reason is None:
        return Row(name="userns", status="ok", detail="unprivileged processes get them")
    if opened.name != "embedded":
        return Row(name="userns", status="ok", detail=f"Docker needs none ({reason[0]})")
    return Row(name="userns", status="missing", detail=reason[0], fix=_not_in_circles(reason[1]))


def images(opened: Opened) -> Row:
    """The images that are pinned here, and whether the engine holds them."""
    if opened.name == "embedded":
        return Row(name="pinned", status="ok", detail="none are needed")
    try:
        pinned = catalogue().entries()
        if not pinned:
            fix = "arsandbox image build cpu"
            return Row(name="pinned", status="warning", detail="no image is built here yet", fix=fix)
        if opened.engine is None:
            return _unknown("pinned", opened)
        gone = [entry.name for entry in pinned if not opened.engine.has_image(entry.digest)]
    except ArsandboxError as error:
        return Row(name="pinned", status="missing", detail=error.message, fix=error.hint)
    if gone:
        fix = f"arsandbox image build {gone[0]}"
        return Row(name="pinned", status="warning", detail=f"not in the engine: {', '.join(gone)}", fix=fix)
    return Row(name="pinned", status="ok", detail=", ".join(entry.name for entry in pinned))


def image_lock(repository: Path) -> Row:
    """Whether what the committed arsandbox.lock of the repository pins is what its names stand for here."""
    try:
        opened = Repository.open(repository)
        head = opened.head()
    except ArsandboxError:
        return Row(name="lock", status="ok", detail="no repository with a commit here")
    data = opened.objects.read(f"{head}:{lock.FILE_NAME}")
    if data is None:
        return Row(name="lock", status="ok", detail=f"no {lock.FILE_NAME} at {head[:12]}: names are not locked")
    try:
        locked = lock.parse(data, f"{lock.FILE_NAME} at {head[:12]}").images
        here = {entry.name: entry.digest for entry in catalogue().entries()}
    except ArsandboxError as error:
        return Row(name="lock", status="missing", detail=error.message, fix=error.hint)
    gone = [name for name in locked if name not in here]
    drifted = [name for name in locked if name in here and here[name] != locked[name].digest]
    if drifted:
        told = f"{', '.join(drifted)}: another image here than {lock.FILE_NAME} says"
        return Row(name="lock", status="warning", detail=told, fix=f"arsandbox image lock {drifted[0]}, then commit it")
    if gone:
        fix = f"arsandbox image build {gone[0]}"
        return Row(name="lock", status="warning", detail=f"locked, but not here: {', '.join(gone)}", fix=fix)
    return Row(name="lock", status="ok", detail=f"{', '.join(locked) or 'nothing'} as locked")


def _unknown(name: str, opened: Opened) -> Row:
    """A row that only an engine could fill: what helps is what makes the engine answer."""
    fix = opened.error.hint if opened.error is not None else "arsandbox doctor --engine docker"
    return Row(name=name, status="warning", detail="not known without an engine", fix=_not_in_circles(fix))


def _not_in_circles(hint: str) -> str:
    """What helps where the hint is to ask the doctor."""
    return _NESTED if hint.startswith("arsandbox doctor") else hint

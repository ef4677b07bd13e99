"""The containment checklist as `arsandbox doctor --probe` prints it: each row from what its attacks came to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from arsandbox.policies.model import Limits
from arsandbox.sandbox.engines.port import Engine
from arsandbox.sandbox.models import EngineInfo, ImageRef, Model
from arsandbox.sandbox.probe.catalogue import Attack, load
from arsandbox.sandbox.probe.group import Answer, attempt

TITLES = {
    1: "all capability sets are empty",
    2: "no new privileges",
    3: "a seccomp filter is active",
    4: "unprivileged user and groups",
    5: "set-uid files gain nothing",
    6: "no namespaces, mounts, device nodes",
    7: "dangerous system calls are refused",
    8: "only Unix, IP and route sockets",
    9: "own process 1, orphans are reaped",
    10: "only declared places are writable",
    11: "writable mounts are nosuid and nodev",
    12: "no foreign or shared mount",
    13: "no socket, repository, secret, variable of the host",
    14: "kernel settings are read-only or masked",
    16: "disk quotas cannot be left",
    17: "memory is limited",
    18: "processes are limited",
    19: "processor time is limited",
    21: "process 1 cannot be killed",
    22: "core dumps are off",
    23: "nothing piles up",
    24: "the sandbox ends without its controller",
    25: "no network but lo",
    26: "named hosts alone are reached",
    27: "no GPU without a grant",
    30: "no keyring is shared",
    31: "nothing is left of earlier runs",
    32: "the overlay's markers cannot be forged",
    35: "nothing can be typed into a terminal",
}


# Where a promise that the engine does not always keep shows in the checklist.
PROMISES = {
    "image": 12,
    "disk": 16,
    "memory": 17,
    "pids": 18,
    "cpus": 19,
    "deadline_without_controller": 24,
    "egress": 26,
    "own_uid": 30,
}


class ChecklistRow(Model):
    """A row of the checklist. `detail`: what is missing where it is not offered, what got through where it failed."""

    row: int
    title: str
    status: Literal["pass", "not offered", "fail"]
    detail: str
    attacks: tuple[str, ...]


def examine(engine: Engine, image: ImageRef, limits: Limits) -> list[ChecklistRow]:
    """Try every attack in one real sandbox with `limits`. Raises MachineError when it cannot be run."""
    attacks = load()
    return judge(attacks, attempt(engine, image, attacks, limits), engine.info())


def judge(attacks: Sequence[Attack], answers: Mapping[str, Answer], engine: EngineInfo) -> list[ChecklistRow]:
    """Rows by number. A payload that broke is a failure: it has shown nothing."""
    weak = engine.guarantees.weak() if engine.guarantees else {}
    declared: dict[int, str] = {}
    for name, kept in weak.items():
        declared[PROMISES[name]] = f"the {engine.name} engine declares {name}: {kept.value}"
    numbers = {number for attack in attacks for number in attack.rows} | set(declared)
    return [
        _row(number, [a for a in attacks if number in a.rows], answers, engine.name, declared.get(number))
        for number in sorted(numbers)
    ]


def _row(
    number: int, attacks: Sequence[Attack], answers: Mapping[str, Answer], engine: str, declared: str | None
) -> ChecklistRow:
    names = tuple(attack.name for attack in attacks)
    title = TITLES.get(number, "")
    for attack in attacks:
        answer = answers[attack.name]
        if answer.outcome == "broken" or (answer.outcome == "succeeded" and attack.expected(engine) == "stopped"):
            detail = f"{attack.name}: {answer.detail.strip().splitlines()[-1]}"
            return ChecklistRow(row=number, title=title, status="fail", detail=detail, attacks=names)
    gaps = [f"{a.name}: {a.gap}" for a in attacks if answers[a.name].outcome == "succeeded"]
    gaps += [declared] if declared else []
    if gaps:
        return ChecklistRow(row=number, title=title, status="not offered", detail="; ".join(gaps), attacks=names)
    stopped = f"{len(names)} {'attack' if len(names) == 1 else 'attacks'} stopped"
    return ChecklistRow(row=number, title=title, status="pass", detail=stopped, attacks=names)

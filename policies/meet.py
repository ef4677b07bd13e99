"""Several sources, one policy: for each field the tighter value wins, and nobody may ask for more.

Bounds are the built-in ceiling and the machine owner's files; askers are the project and the command line,
in this order. A field that no asker speaks of gets the stage's preset, within the bounds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from arsandbox.policies.model import LARGEST, Limits, Policy
from arsandbox.policies.rules import EVERYTHING, Hosts, Rule
from arsandbox.sandbox.errors import RefusedError
from arsandbox.sandbox.quantities import format_size

# Addresses and directories of this very machine: the project, which may be anybody's, cannot open them.
LOCAL = ("private_hosts", "mounts")


@dataclass(frozen=True)
class Layer:
    """What one source says: only the fields that `policy` has set. `local`: it is this machine's own."""

    source: str
    policy: Policy
    local: bool = True


@dataclass(frozen=True)
class Effective:
    """The policy that holds, and for each field (dotted name) the source that set it."""

    policy: Policy
    sources: Mapping[str, str] = field(default_factory=dict)


def rules() -> dict[str, Rule]:
    """Every field's rule by its dotted name."""
    return {**{f"limits.{name}": rule for name, rule in _rules(Limits)}, **dict(_rules(Policy))}


def said(policy: Policy) -> dict[str, Any]:
    """The fields that are set, by dotted name."""
    found: dict[str, Any] = {}
    for name in policy.model_fields_set:
        value = getattr(policy, name)
        if isinstance(value, Limits):
            found.update({f"limits.{limit}": getattr(value, limit) for limit in value.model_fields_set})
        elif name in Policy.model_fields:
            found[name] = value
    return found


def everything(policy: Policy) -> dict[str, Any]:
    """All fields, set or not, by dotted name."""
    return {name: _value(policy, name) for name in rules()}


def meet(one: Policy, other: Policy) -> Policy:
    """The tighter value of each field. Associative, commutative and idempotent."""
    return _policy({name: rule.meet(_value(one, name), _value(other, name)) for name, rule in rules().items()})


def combine(ceiling: Layer, owners: Sequence[Layer], askers: Sequence[Layer], preset: Layer) -> Effective:
    """The effective policy. Raises RefusedError when an asker wants more than a stricter source allows."""
    values, sources = {}, {}
    for name, rule in rules().items():
        value, source = said(ceiling.policy)[name], ceiling.source
        for layer in owners:
            value, source = _tightened(rule, value, source, layer, name)
        spoken = [layer for layer in askers if name in said(layer.policy)]
        opened = any(name in said(layer.policy) for layer in owners)
        for layer in spoken:
            if name in LOCAL and not layer.local and not opened:
                _require(name, rule, (), "the built-in policy, until the machine's owner names them,", layer)
            _require(name, rule, value, source, layer)
            value, source = _tightened(rule, value, source, layer, name)
        if not spoken:
            value, source = _tightened(rule, value, source, preset, name)
        if name in LOCAL and not opened and not any(layer.local for layer in spoken):
            value, source = (), ceiling.source
        values[name], sources[name] = value, source
    return Effective(_policy(_closed(values)), sources)


def narrowed(effective: Effective, by: Layer) -> Effective:
    """`effective` with the tighter value of each field that `by` speaks of; it asks for nothing: none is refused."""
    values, sources = everything(effective.policy), dict(effective.sources)
    for name in said(by.policy):
        values[name], sources[name] = _tightened(rules()[name], values[name], sources.get(name, ""), by, name)
    return Effective(_policy(_closed(values)), sources)


def _require(name: str, rule: Rule, bound: Any, allower: str, asker: Layer) -> None:
    asked = said(asker.policy)[name]
    if not rule.adds and rule.meet(bound, asked) != asked:
        raise RefusedError(
            f"policy field {name}: {asker.source} asks for {shown(name, asked)}, "
            f"but {allower} allows only {shown(name, bound)}",
            hint="ask for no more, or have it allowed there; see: arsandbox policy show",
        )


def _tightened(rule: Rule, value: Any, source: str, layer: Layer, name: str) -> tuple[Any, str]:
    asked = said(layer.policy).get(name, value)
    tighter = rule.meet(value, asked)
    if tighter == value:
        return value, source
    return tighter, layer.source if tighter == asked else f"{source} and {layer.source}"


def _closed(values: dict[str, Any]) -> dict[str, Any]:
    """Without `everything` among the hosts: one is reached where somebody has named it; none named is no network."""
    hosts = () if values["hosts"] == (EVERYTHING,) or values["network"] == "none" else values["hosts"]
    private = () if values["private_hosts"] == (EVERYTHING,) else Hosts().meet(hosts, values["private_hosts"])
    return {**values, "hosts": hosts, "private_hosts": private, "network": "allowlist" if hosts else "none"}


def shown(name: str, value: Any) -> str:
    """A field's value for people."""
    if name.endswith("_bytes"):
        return "no limit" if value == LARGEST else format_size(value)
    if isinstance(value, tuple):
        return "[" + ", ".join(str(list(one)) if isinstance(one, tuple) else str(one) for one in value) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _rules(model: type[BaseModel]) -> Iterator[tuple[str, Rule]]:
    for name, info in model.model_fields.items():
        for note in info.metadata:
            if hasattr(note, "meet"):
                yield name, note


def _value(policy: Policy, name: str) -> Any:
    first, _, rest = name.partition(".")
    return getattr(policy.limits, rest) if rest else getattr(policy, first)


def _policy(values: Mapping[str, Any]) -> Policy:
    limits = {name.partition(".")[2]: value for name, value in values.items() if name.startswith("limits.")}
    return Policy(limits=Limits(**limits), **{name: value for name, value in values.items() if "." not in name})

"""The seccomp filter of every sandbox, from policies/seccomp.toml: as Docker's JSON and as a BPF program."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import tempfile
import tomllib
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from arsandbox.sandbox.errors import MachineError

_ARCHITECTURES = {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64"}
_EPERM = 1
# libseccomp's interface (seccomp.h).
_ACT_ALLOW, _ACT_ERRNO, _CMP_MASKED_EQ = 0x7FFF0000, 0x00050000, 7
_ALL = 0xFFFFFFFF


class Condition(NamedTuple):
    """An argument's bits: `arguments[position] & mask == value`."""

    position: int
    mask: int
    value: int


class Rule(NamedTuple):
    """One call that is allowed when all conditions hold (`errno` 0), or fails with `errno`."""

    name: str
    conditions: tuple[Condition, ...] = ()
    errno: int = 0


class _Unless(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    index: int = Field(ge=0, le=5)
    values: tuple[int, ...]


class _Source(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    allow: tuple[str, ...]
    errno: dict[str, int]
    when: dict[str, tuple[tuple[Condition, ...], ...]]
    unless: dict[str, _Unless]


@cache
def rules() -> tuple[Rule, ...]:
    """Every rule of the filter; what none of them allows fails with EPERM."""
    source = _Source.model_validate(tomllib.loads((Path(__file__).parent / "seccomp.toml").read_text("utf-8")))
    found = [Rule(name) for name in source.allow]
    found += [Rule(name, errno=errno) for name, errno in source.errno.items()]
    found += [Rule(name, tuple(row)) for name, rows in source.when.items() for row in rows]
    for name, unless in source.unless.items():
        found += [Rule(name, (Condition(unless.index, *row),)) for row in all_but(unless.values)]
    return tuple(found)


def all_but(values: Iterable[int]) -> Iterator[tuple[int, int]]:
    """(mask, value) rows that together match every 32-bit number but `values`.

    A filter that allows cannot say "not equal" of 32 bits. The numbers are halved by their highest bit,
    then the next, as long as a half holds one of `values`; a half that holds none is a row.
    """
    yield from _halves({value & _ALL for value in values}, 32, 0)


def _halves(values: set[int], bits: int, prefix: int) -> Iterator[tuple[int, int]]:
    if not values:
        yield (_ALL >> bits) << bits, prefix
    elif bits:
        half = 1 << (bits - 1)
        yield from _halves({value for value in values if not value & half}, bits - 1, prefix)
        yield from _halves({value for value in values if value & half}, bits - 1, prefix | half)


@cache
def docker_profile() -> str:
    """The filter in the form that Docker's API takes (`seccomp=JSON`). Raises MachineError for another CPU."""
    plain = [rule.name for rule in rules() if not rule.conditions and not rule.errno]
    calls: list[dict[str, object]] = [{"names": plain, "action": "SCMP_ACT_ALLOW"}]
    for rule in rules():
        if rule.errno:
            calls.append({"names": [rule.name], "action": "SCMP_ACT_ERRNO", "errnoRet": rule.errno})
        elif rule.conditions:
            arguments = [
                {"index": one.position, "value": one.mask, "valueTwo": one.value, "op": "SCMP_CMP_MASKED_EQ"}
                for one in rule.conditions
            ]
            calls.append({"names": [rule.name], "action": "SCMP_ACT_ALLOW", "args": arguments})
    return json.dumps(
        {"defaultAction": "SCMP_ACT_ERRNO", "architectures": [_architecture()], "syscalls": calls},
        separators=(",", ":"),
    )


def _architecture() -> str:
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        raise MachineError(f"there is no seccomp filter for {machine} processors", hint="supported: x86_64 and aarch64")
    return _ARCHITECTURES[machine]


class _Comparison(ctypes.Structure):
    """`struct scmp_arg_cmp`."""

    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("mask", ctypes.c_uint64),
        ("value", ctypes.c_uint64),
    )


def bpf_program(*, without: Collection[str] = ()) -> bytes:
    """The filter for this processor as a BPF program (`struct sock_filter` after `struct sock_filter`).

    `without`: calls that are refused although the filter would allow them. For engines that load a filter
    themselves (bubblewrap's `--seccomp FD`). Made by libseccomp; raises MachineError where that library is
    missing.
    """
    _architecture()
    return _exported(frozenset(without))


@cache
def _exported(without: frozenset[str]) -> bytes:
    library = _library()
    context = library.seccomp_init(ctypes.c_uint32(_ACT_ERRNO | _EPERM))
    if not context:
        raise MachineError("libseccomp cannot make a filter")
    try:
        for rule in rules():
            if rule.name not in without:
                _add(library, context, rule)
        with tempfile.TemporaryFile() as file:
            if library.seccomp_export_bpf(ctypes.c_void_p(context), file.fileno()) != 0:
                raise MachineError("libseccomp cannot export the filter")
            file.seek(0)
            return file.read()
    finally:
        library.seccomp_release(ctypes.c_void_p(context))


def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError as error:
        raise MachineError("libseccomp is not installed", hint="sudo apt-get install libseccomp2") from error
    library.seccomp_init.restype = ctypes.c_void_p
    return library


def _add(library: ctypes.CDLL, context: int, rule: Rule) -> None:
    number = library.seccomp_syscall_resolve_name(rule.name.encode())
    if number < 0:
        return  # this processor has no such call, or this libseccomp does not know it: it stays refused
    action = ctypes.c_uint32(_ACT_ERRNO | rule.errno if rule.errno else _ACT_ALLOW)
    comparisons = (_Comparison * max(1, len(rule.conditions)))(
        *(_Comparison(one.position, _CMP_MASKED_EQ, one.mask, one.value) for one in rule.conditions)
    )
    result = library.seccomp_rule_add_array(ctypes.c_void_p(context), action, number, len(rule.conditions), comparisons)
    if result != 0:
        raise MachineError(f"libseccomp refuses the rule for {rule.name}: {os.strerror(-result)}")

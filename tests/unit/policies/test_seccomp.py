"""One source, two forms: the BPF program and Docker's JSON allow exactly what policies/seccomp.toml says."""

from __future__ import annotations

import ctypes
import functools
import json
import platform
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arsandbox.policies import seccomp
from arsandbox.policies.seccomp import Rule, all_but, bpf_program, docker_profile, rules
from arsandbox.sandbox.errors import MachineError

ALLOW, ERRNO = 0x7FFF0000, 0x00050000
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
RESERVED = [
    "mount", "umount2", "pivot_root", "chroot", "setns", "fsopen", "fsmount", "fspick", "open_tree", "move_mount",
    "mount_setattr", "bpf", "ptrace", "kcmp", "perf_event_open", "keyctl", "add_key", "request_key",
    "io_uring_setup", "io_uring_enter", "io_uring_register", "userfaultfd", "kexec_load", "kexec_file_load",
    "init_module", "finit_module", "delete_module", "open_by_handle_at", "name_to_handle_at", "process_vm_readv",
    "process_vm_writev", "pidfd_getfd", "reboot", "swapon", "settimeofday", "clock_settime", "acct", "quotactl",
    "iopl", "ioperm", "syslog", "modify_ldt", "vmsplice", "sync", "sethostname", "fanotify_init",
]  # fmt: skip


@functools.cache
def numbers() -> dict[str, int]:
    library = ctypes.CDLL("libseccomp.so.2")
    named = {
        name: library.seccomp_syscall_resolve_name(name.encode()) for name in {r.name for r in rules()} | {*RESERVED}
    }
    return {name: number for name, number in named.items() if number >= 0}


@functools.cache
def program() -> tuple[tuple[int, int, int, int], ...]:
    return tuple(struct.iter_unpack("HBBI", bpf_program()))


def run(number: int, arguments: tuple[int, ...], arch: int | None = None) -> int:
    """What the kernel's classic BPF machine answers (linux/filter.h), for the instructions that libseccomp uses."""
    arch = AUDIT_ARCH[platform.machine()] if arch is None else arch
    data = struct.pack("<IIQ6Q", number, arch, 0, *arguments)
    at, a = 0, 0
    memory: dict[int, int] = {}
    while True:
        code, jt, jf, k = program()[at]
        at += 1
        if code == 0x20:
            (a,) = struct.unpack_from("<I", data, k)
        elif code == 0x06:
            return k
        elif code == 0x05:
            at += k
        elif code == 0x54:
            a &= k
        elif code == 0x02:
            memory[k] = a
        elif code == 0x60:
            a = memory[k]
        elif code in (0x15, 0x25, 0x35, 0x45):
            taken = {0x15: a == k, 0x25: a > k, 0x35: a >= k, 0x45: bool(a & k)}[code]
            at += jt if taken else jf
        else:
            raise AssertionError(f"instruction {code:#x}")


def told(name: str, arguments: tuple[int, ...]) -> int:
    """What the rules say, read apart from both forms."""
    for rule in rules():
        if rule.name == name and all(arguments[c.position] & c.mask == c.value for c in rule.conditions):
            return ERRNO | rule.errno if rule.errno else ALLOW
    return ERRNO | 1


INTERESTING = sorted(
    {c.value ^ flip for r in rules() for c in r.conditions for flip in (0, 1, 1 << 31, 1 << 33)} | {0, 2**64 - 1, 17}
)


@given(st.data())
def test_the_bpf_program_says_what_the_rules_say(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(numbers())))
    word = st.one_of(st.sampled_from(INTERESTING), st.integers(0, 2**64 - 1))
    arguments = tuple(data.draw(word) for _ in range(6))
    assert run(numbers()[name], arguments) == told(name, arguments), (name, arguments)


@pytest.mark.parametrize("name", ["clone", "socket", "ioctl", "unshare", "mknodat", "personality", "socketpair"])
@given(st.tuples(*[st.one_of(st.sampled_from(INTERESTING), st.integers(0, 2**64 - 1))] * 3))
def test_calls_with_conditions_are_decided_alike(name: str, first: tuple[int, ...]) -> None:
    arguments = (*first, 0, 0, 0)
    assert run(numbers()[name], arguments) == told(name, arguments)


@pytest.mark.parametrize("name", RESERVED)
def test_calls_that_are_never_allowed(name: str) -> None:
    assert name not in {rule.name for rule in rules()}
    if name in numbers():
        assert run(numbers()[name], (0,) * 6) == ERRNO | 1


@pytest.mark.parametrize("arch", [0x40000003, 0x1234])
def test_another_architecture_s_calls_are_fatal(arch: int) -> None:
    assert run(1, (0,) * 6, arch) == 0


def test_the_x32_calls_are_not_allowed() -> None:
    if platform.machine() != "x86_64":
        pytest.skip("x32 is of x86_64")
    assert run(0x40000000 | numbers()["getpid"], (0,) * 6) != ALLOW


@pytest.mark.parametrize("high", [0, 1 << 32, 0xFFFFFFFF << 32])
def test_an_ioctl_that_leaves_the_quota_is_refused_with_any_upper_half(high: int) -> None:
    assert run(numbers()["ioctl"], (3, high | 0x401C5820, 0, 0, 0, 0)) == ERRNO | 1
    assert run(numbers()["ioctl"], (3, high | 0x5401, 0, 0, 0, 0)) == ALLOW


@given(st.sets(st.integers(0, 2**32 - 1), min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_all_but_matches_every_other_number(values: set[int], other: int) -> None:
    rows = list(all_but(values))
    for number in {*values, other}:
        assert any(number & mask == value for mask, value in rows) == (number not in values)


def test_dockers_form_holds_the_same_rules() -> None:
    profile = json.loads(docker_profile())
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    found = set()
    for row in profile["syscalls"]:
        conditions = tuple((a["index"], a["value"], a["valueTwo"]) for a in row.get("args", ()))
        assert {a["op"] for a in row.get("args", ())} <= {"SCMP_CMP_MASKED_EQ"}
        # runc makes alternatives of two conditions on one argument: never write such a rule.
        assert len({c[0] for c in conditions}) == len(conditions)
        found |= {(name, conditions, row.get("errnoRet", 0)) for name in row["names"]}
    assert found == {(r.name, tuple(map(tuple, r.conditions)), r.errno) for r in rules()}
    assert all(isinstance(rule, Rule) for rule in rules())


def test_a_processor_without_a_filter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "sparc64")
    for make in (docker_profile.__wrapped__, seccomp.bpf_program):
        with pytest.raises(MachineError, match="sparc64"):
            make()

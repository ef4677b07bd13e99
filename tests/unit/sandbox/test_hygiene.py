"""What disturbs a measurement, and cores of one's own."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from arsandbox.sandbox import cores as core_leases
from arsandbox.sandbox import hygiene, state
from arsandbox.sandbox.config import MeasurementConfig
from arsandbox.sandbox.cores import Cores
from arsandbox.sandbox.hygiene import Reading, conditions, disturbances, read
from arsandbox.sandbox.record import Conditions

BEFORE = Reading(
    at=100.0, load=0.5, busy_s=1000.0, swapped_pages=10, major_faults=20, throttle_events=3,
    pressure_s={"cpu": 5.0, "memory": 6.0, "io": 7.0},
)  # fmt: skip
AFTER = Reading(
    at=110.0, load=1.256, busy_s=1025.0, swapped_pages=14, major_faults=25, throttle_events=5,
    pressure_s={"cpu": 6.0, "memory": 6.25, "io": 7.12345},
)  # fmt: skip


def between(before: Reading = BEFORE, after: Reading = AFTER, own_cpu_s: float = 10.0) -> Conditions:
    return conditions(before, after, cores="0,1", memory_nodes="0", own_cpu_s=own_cpu_s)


# --- the arithmetic ---------------------------------------------------------------------------------------


def test_conditions_are_differences_of_the_two_readings() -> None:
    seen = between()
    assert (seen.cores, seen.memory_nodes) == ("0,1", "0")
    assert (seen.load_before, seen.load_after) == (0.5, 1.26)
    assert seen.foreign_cpu == 1.5  # 25 busy seconds, 10 of them ours, in 10 seconds
    assert (seen.swapped_pages, seen.major_faults, seen.throttle_events) == (4, 5, 2)
    assert (seen.cpu_pressure, seen.memory_pressure, seen.io_pressure) == (0.1, 0.025, 0.0123)


def test_what_the_sandbox_used_itself_is_not_foreign() -> None:
    assert between(own_cpu_s=25.0).foreign_cpu == 0.0
    assert between(own_cpu_s=25.5).foreign_cpu == 0.0  # counters of ticks may be a little behind
    assert between(own_cpu_s=0.0).foreign_cpu == 2.5


def test_counters_that_went_back_are_no_negative_share() -> None:
    back = dataclasses.replace(AFTER, pressure_s={"cpu": 0.0, "memory": 0.0, "io": 0.0}, busy_s=900.0)
    seen = between(after=back)
    assert (seen.foreign_cpu, seen.cpu_pressure, seen.memory_pressure, seen.io_pressure) == (0, 0, 0, 0)


def test_two_readings_of_one_moment_do_not_divide_by_zero() -> None:
    seen = between(after=dataclasses.replace(AFTER, at=BEFORE.at))
    assert seen.foreign_cpu == 15_000.0


# --- bounds -----------------------------------------------------------------------------------------------

BOUNDS = [
    ("foreign_cpu", 0.5, 0.499, 0.501, "others kept 0.50 cores busy; at most 0.5 is allowed"),
    ("swapped_pages", 10, 9, 11, "11 pages were swapped; at most 10 is allowed"),
    ("throttle_events", 2, 1, 3, "the processor was throttled 3 times; at most 2 is allowed"),
    ("cpu_pressure", 0.1, 0.05, 0.25, "tasks waited for a processor 25% of the time; at most 0.1 is allowed"),
    ("memory_pressure", 0.2, 0.1, 0.5, "tasks waited for memory 50% of the time; at most 0.2 is allowed"),
]


@pytest.mark.parametrize(("name", "bound", "below", "above", "words"), BOUNDS)
def test_each_bound_binds_above_and_not_at_or_below(
    name: str, bound: float, below: float, above: float, words: str
) -> None:
    bounds = MeasurementConfig(**{name: bound})
    assert disturbances(Conditions(**{name: below}), bounds) == []
    assert disturbances(Conditions(**{name: bound}), bounds) == []
    assert disturbances(Conditions(**{name: above}), bounds) == [words]
    assert disturbances(Conditions(**{name: above}), MeasurementConfig()) == []  # an absent bound does not bind


@pytest.mark.parametrize("name", [row[0] for row in BOUNDS])
def test_a_bound_of_zero_binds(name: str) -> None:
    bounds = MeasurementConfig(**{name: 0})
    assert disturbances(Conditions(), bounds) == []
    assert len(disturbances(Conditions(**{name: 1}), bounds)) == 1


def test_every_bound_of_the_config_is_checked_and_all_are_named() -> None:
    numeric = set(MeasurementConfig.model_fields) - {"pin", "repeat"}
    assert numeric == {row[0] for row in BOUNDS}
    seen = Conditions(**{name: above for name, _, _, above, _ in BOUNDS})
    bounds = MeasurementConfig(**{name: bound for name, bound, *_ in BOUNDS})
    assert disturbances(seen, bounds) == [row[-1] for row in BOUNDS]


# --- this machine -----------------------------------------------------------------------------------------


def test_this_machine_can_be_read_quickly_and_its_counters_go_up() -> None:
    began = time.monotonic()
    first = read()
    assert time.monotonic() - began < 1
    assert began <= first.at <= time.monotonic()
    assert first.busy_s > 0 and first.load >= 0 and first.major_faults >= 0
    assert set(first.pressure_s) == {"cpu", "memory", "io"}
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        pass
    second = read()
    assert second.busy_s - first.busy_s >= 0.2
    assert second.major_faults >= first.major_faults and second.swapped_pages >= first.swapped_pages
    assert all(second.pressure_s[name] >= first.pressure_s[name] for name in first.pressure_s)


def test_idle_and_waiting_time_is_not_busy() -> None:
    now = read().busy_s
    idle, waiting = (int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[4:6])
    ticks = os.sysconf("SC_CLK_TCK")
    whole = sum(int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]) / ticks
    assert now == pytest.approx(whole - (idle + waiting) / ticks, abs=2)


def test_a_busy_loop_elsewhere_is_foreign_processor_time() -> None:
    before = read()
    with subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) as burner:
        try:
            time.sleep(1.5)
            seen = conditions(before, read(), cores="", memory_nodes="", own_cpu_s=0.0)
        finally:
            burner.kill()
    assert seen.foreign_cpu > 0.5, seen
    bounds = MeasurementConfig(foreign_cpu=0.25)
    assert any("cores busy" in line for line in disturbances(seen, bounds))


def test_files_that_are_not_there_read_as_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hygiene, "_CPU", tmp_path / "none")
    seen = between()
    assert (seen.governor, seen.turbo, seen.smt) == ("", "", "")
    assert read().throttle_events == 0


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"intel_pstate/no_turbo": "1\n"}, ("", "off", "")),
        ({"intel_pstate/no_turbo": "0\n"}, ("", "on", "")),
        ({"cpufreq/boost": "1\n"}, ("", "on", "")),
        ({"cpufreq/boost": "0\n", "smt/active": "1\n"}, ("", "off", "1")),
        ({"cpu0/cpufreq/scaling_governor": "performance\n", "smt/active": "0\n"}, ("performance", "", "0")),
    ],
)
def test_the_processor_s_settings_are_read(
    files: dict[str, str], expected: tuple[str, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(hygiene, "_CPU", tmp_path)
    seen = between()
    assert (seen.governor, seen.turbo, seen.smt) == expected


def test_throttle_counters_of_all_cores_are_summed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, count in enumerate((3, 0, 4)):
        place = tmp_path / f"cpu{number}" / "thermal_throttle"
        place.mkdir(parents=True)
        (place / "core_throttle_count").write_text(f"{count}\n")
    monkeypatch.setattr(hygiene, "_CPU", tmp_path)
    assert read().throttle_events == 7


# --- cores ------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Leases of this test alone: the real ones are shared by the whole machine."""
    place = tmp_path / "locks"
    place.mkdir(mode=0o700)
    monkeypatch.setattr(state, "machine_locks", lambda: place)
    return place


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four physical cores with two siblings each (0,4 1,5 2,6 3,7), on two memory nodes."""
    root = tmp_path / "cpu"
    for number in range(8):
        core = number % 4
        topology = root / f"cpu{number}" / "topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{core},{core + 4}\n")
        (root / f"cpu{number}" / f"node{core // 2}").mkdir()
    monkeypatch.setattr(core_leases, "_CPU", root)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    return root


def test_a_core_comes_with_its_siblings(machine: Path) -> None:
    one = Cores.take(1)
    assert (one.numbers, one.listing, one.memory_nodes) == ((0, 4), "0,4", "0")
    two = Cores.take(3)
    assert (two.listing, two.memory_nodes) == ("1,2,5,6", "0,1")
    three = Cores.take(2)
    assert (three.listing, three.memory_nodes) == ("3,7", "1")
    for held in (one, two, three):
        held.release()


def test_no_two_leases_share_a_core_and_none_is_left_at_the_end(machine: Path) -> None:
    held = [Cores.take(2) for _ in range(4)]
    numbers = [number for lease in held for number in lease.numbers]
    assert sorted(numbers) == list(range(8))
    empty = Cores.take(1)
    assert (empty.numbers, empty.listing, empty.memory_nodes) == ((), "", "")
    empty.release()
    held[2].release()
    again = Cores.take(1)
    assert again.numbers == held[2].numbers
    for lease in (again, held[0], held[1], held[3]):
        lease.release()


def test_too_few_free_cores_lease_nothing_and_keep_no_lock(machine: Path) -> None:
    held = Cores.take(4)
    assert Cores.take(5).listing == ""
    rest = Cores.take(4)  # what the failed lease had touched is free again
    assert sorted(held.numbers + rest.numbers) == list(range(8))
    held.release()
    rest.release()
    whole = Cores.take(8)
    assert len(whole.numbers) == 8
    whole.release()
    assert Cores.take(9).listing == ""


@pytest.mark.parametrize(("count", "expected"), [(0.25, 2), (1, 2), (1.5, 2), (2, 2), (2.01, 4), (4.5, 6), (8, 8)])
def test_parts_of_a_processor_are_rounded_up(count: float, expected: int, machine: Path) -> None:
    held = Cores.take(count)
    assert len(held.numbers) == expected
    held.release()


def test_a_core_that_is_only_partly_ours_is_not_leased(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 6, 7})
    held = Cores.take(1)
    assert held.listing == "2,6"
    assert Cores.take(1).listing == ""
    held.release()


@pytest.mark.parametrize(("text", "expected"), [("0-3", "0,1,2,3"), ("0-1,3", "0,1,3"), ("0", "0")])
def test_sibling_lists_are_read_in_the_kernel_s_format(
    text: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        topology = tmp_path / f"cpu{number}" / "topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(text if str(number) in expected else str(number))
    monkeypatch.setattr(core_leases, "_CPU", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(4)))
    held = Cores.take(1)
    assert held.listing == expected
    held.release()


def test_without_a_topology_every_processor_is_a_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_leases, "_CPU", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {2, 5})
    held = Cores.take(2)
    assert (held.listing, held.memory_nodes) == ("2,5", "")
    held.release()


def test_this_machine_s_cores_can_all_be_leased_once() -> None:
    allowed = os.sched_getaffinity(0)
    held = []
    while (lease := Cores.take(1)).listing:
        held.append(lease)
    numbers = [number for lease in held for number in lease.numbers]
    assert held and len(numbers) == len(set(numbers)) and set(numbers) <= allowed
    assert all(not lease.memory_nodes or lease.memory_nodes.replace(",", "").isdigit() for lease in held)
    for lease in held:
        lease.release()
    again = Cores.take(1)
    assert again.listing == held[0].listing
    again.release()


HOLDER = """
import pathlib, sys, time
from arsandbox.sandbox import state
from arsandbox.sandbox.cores import Cores
state.machine_locks = lambda: pathlib.Path(sys.argv[1])
held = []
while (lease := Cores.take(1)).listing:
    held.append(lease)
print(sum(len(lease.numbers) for lease in held), flush=True)
time.sleep(60)
"""


def test_a_lease_of_another_process_ends_with_its_death(locks: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(locks)], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            taken = int(holder.stdout.readline())
            assert taken > 0
            assert Cores.take(1).listing == ""
        finally:
            holder.kill()
    held = Cores.take(1)
    assert held.listing != ""
    held.release()


def test_root_s_leases_are_the_whole_machine_s(locks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARSANDBOX_HOME", str(tmp_path / "one"))
    held = Cores.take(1)
    monkeypatch.setenv("ARSANDBOX_HOME", str(tmp_path / "two"))
    other = Cores.take(1)
    assert held.listing and not set(held.numbers) & set(other.numbers)
    held.release()
    other.release()


def test_a_lease_is_not_inherited_by_a_program_that_is_started(machine: Path) -> None:
    held = Cores.take(8)
    with subprocess.Popen(["sleep", "60"], close_fds=False) as child:
        try:
            held.release()
            again = Cores.take(8)
            assert len(again.numbers) == 8
            again.release()
        finally:
            child.kill()

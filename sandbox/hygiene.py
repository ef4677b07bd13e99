"""What may disturb a measurement, read from the kernel before and after it.

Files: /proc/{stat,vmstat,loadavg}, /proc/pressure/* (Documentation/accounting/psi.rst), and
/sys/devices/system/cpu (cpufreq, intel_pstate, smt, thermal_throttle). A file that is not there
reads as empty or zero: the fact is then not known, never assumed good.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from arsandbox.sandbox.config import MeasurementConfig
from arsandbox.sandbox.record import Conditions

_CPU = Path("/sys/devices/system/cpu")
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Reading:
    """Counters at one moment; seconds, pages and events since boot."""

    at: float
    load: float
    busy_s: float
    swapped_pages: int
    major_faults: int
    throttle_events: int
    pressure_s: dict[str, float]


def read() -> Reading:
    """Read the counters now (about a millisecond)."""
    counters = _vmstat()
    return Reading(
        at=time.monotonic(),
        load=os.getloadavg()[0],
        busy_s=_busy_seconds(),
        swapped_pages=counters.get("pswpin", 0) + counters.get("pswpout", 0),
        major_faults=counters.get("pgmajfault", 0),
        throttle_events=_throttle_events(),
        pressure_s={name: _pressure_seconds(name) for name in ("cpu", "memory", "io")},
    )


def conditions(before: Reading, after: Reading, *, cores: str, memory_nodes: str, own_cpu_s: float) -> Conditions:
    """The machine's conditions between two readings; `own_cpu_s` is what the measured sandbox used.

    `foreign_cpu` is the mean number of cores that others kept busy; pressures are shares of the time.
    """
    wall = max(after.at - before.at, 1e-3)

    def share(name: str) -> float:
        return round(max(0.0, after.pressure_s[name] - before.pressure_s[name]) / wall, 4)

    return Conditions(
        cores=cores,
        memory_nodes=memory_nodes,
        governor=_first_line(_CPU / "cpu0/cpufreq/scaling_governor"),
        turbo=_turbo(),
        smt=_first_line(_CPU / "smt/active"),
        load_before=round(before.load, 2),
        load_after=round(after.load, 2),
        foreign_cpu=round(max(0.0, after.busy_s - before.busy_s - own_cpu_s) / wall, 3),
        swapped_pages=after.swapped_pages - before.swapped_pages,
        major_faults=after.major_faults - before.major_faults,
        throttle_events=after.throttle_events - before.throttle_events,
        cpu_pressure=share("cpu"),
        memory_pressure=share("memory"),
        io_pressure=share("io"),
    )


def disturbances(seen: Conditions, bounds: MeasurementConfig) -> list[str]:
    """What went beyond the project's declared bounds, one sentence each; empty for a clean measurement."""
    checks = (
        (bounds.foreign_cpu, seen.foreign_cpu, "others kept {:.2f} cores busy"),
        (bounds.swapped_pages, seen.swapped_pages, "{:.0f} pages were swapped"),
        (bounds.throttle_events, seen.throttle_events, "the processor was throttled {:.0f} times"),
        (bounds.cpu_pressure, seen.cpu_pressure, "tasks waited for a processor {:.0%} of the time"),
        (bounds.memory_pressure, seen.memory_pressure, "tasks waited for memory {:.0%} of the time"),
    )
    return [
        f"{words.format(value)}; at most {bound:g} is allowed"
        for bound, value, words in checks
        if bound is not None and value > bound
    ]


def _busy_seconds() -> float:
    with Path("/proc/stat").open() as file:
        # proc(5): user nice system idle iowait irq softirq steal; guest time is part of user.
        fields = [int(field) for field in file.readline().split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / _TICKS_PER_SECOND


def _vmstat() -> dict[str, int]:
    rows = (line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    return {name: int(value) for name, value in rows if name in ("pswpin", "pswpout", "pgmajfault")}


def _throttle_events() -> int:
    counts = (_first_line(path) for path in _CPU.glob("cpu*/thermal_throttle/core_throttle_count"))
    return sum(int(count) for count in counts if count.isdigit())


def _pressure_seconds(name: str) -> float:
    line = _first_line(Path("/proc/pressure") / name)  # "some avg10=… total=MICROSECONDS"
    _, _, total = line.partition("total=")
    return int(total) / 1e6 if total.isdigit() else 0.0


def _turbo() -> str:
    disabled = _first_line(_CPU / "intel_pstate/no_turbo")
    if disabled:
        return "off" if disabled == "1" else "on"
    return {"1": "on", "0": "off"}.get(_first_line(_CPU / "cpufreq/boost"), "")


def _first_line(path: Path) -> str:
    try:
        return path.read_text().partition("\n")[0].strip()
    except OSError:
        return ""

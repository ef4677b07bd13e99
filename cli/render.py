"""What people see: verdict lines, tables and live progress. Talk goes to standard error."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.table import Table

from arsandbox.cli.listing import COLOURS, OTHER_COLOUR
from arsandbox.sandbox.models import Stage
from arsandbox.sandbox.quantities import format_duration, format_size
from arsandbox.sandbox.record import Record
from arsandbox.sandbox.state import printable

_QUIET_S = 10.0


def plain(text: str) -> str:
    """`text` as one harmless line of rich markup: records quote paths and words that a candidate chose."""
    return escape(printable(" ".join(text.split())))


def verdict_line(record: Record) -> str:
    """One clear line, as rich markup: verdict, reason, trust, where it was promoted, id."""
    colour = COLOURS.get(record.verdict.value, OTHER_COLOUR)
    parts = [f"[{colour}]{record.verdict.value}[/]", plain(record.reason)]
    if record.metric.value is not None:
        parts.append(f"\\[{record.trust}]")
    if record.promotion is not None:
        branch = record.promotion.ref.removeprefix("refs/heads/")
        parts.append(f"promoted to {plain(branch)} ({record.promotion.commit[:12]})")
    return "  ".join([*parts, f"[dim]{record.id}[/]"])


def say_record(record: Record, console: Console) -> None:
    """The verdict line and each finding below it."""
    console.print(verdict_line(record), soft_wrap=True)
    for finding in record.findings:
        console.print(f"  finding {finding.code}: {plain(finding.detail)}", soft_wrap=True)


def record_table(record: Record) -> Table:
    """Everything a person asks of one record first."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    metric = record.metric
    rows = {
        "id": record.id,
        "verdict": f"{record.verdict.value} ({record.trust})",
        "reason": record.reason,
        "metric": f"{metric.name} = {metric.value} ({metric.goal}, by {metric.source})",
        "self-reported": ", ".join(f"{k}={v:.6g}" for k, v in record.self_reported.items()),
        "baseline": f"{record.baseline.value:.6g} ({record.baseline.experiment})" if record.baseline else "",
        "promotion": f"{record.promotion.commit} on {record.promotion.ref}" if record.promotion else "",
        "findings": "; ".join(f"{f.code}: {f.detail}" for f in record.findings),
        "base": record.base_commit,
        "patch": f"{', '.join(record.patch.files) or 'none'} (+{record.patch.insertions} -{record.patch.deletions})",
        "image": f"{record.image.name} {record.image.digest}",
        "command": " ".join(record.command),
        "seed": str(record.seed),
        "budget": f"{format_duration(record.budget_s)} + {format_duration(record.grace_s)} grace",
        "stages": "; ".join(
            f"{s.stage.value}: {s.termination.reason.value} in {format_duration(s.wall_s)}" for s in record.stages
        ),
        "usage": f"{record.usage.cpu_s:.1f} CPU-s, peak {format_size(record.usage.peak_memory_bytes)}, "
        f"{record.usage.peak_pids} processes, {format_size(record.usage.disk_bytes)} disk",
        "gpu": _gpus(record),
        "changed": f"{len(record.change_set.paths)} paths, {format_size(record.change_set.bytes)}",
        "started": record.started_at,
        "ledger": record.ledger_hash,
    }
    for name, value in rows.items():
        if value:
            table.add_row(name, plain(value))
    return table


def _gpus(record: Record) -> str:
    """Each device that the run had, and what it did to it; empty without one."""
    from arsandbox.sandbox.gpu.sampling import GpuUsage

    if not record.usage.gpu:
        return ""
    told = []
    for device in GpuUsage.model_validate(record.usage.gpu).devices:
        words = [f"{device.name} {device.uuid}", f"peak {format_size(device.peak_memory_bytes)}"]
        if device.mean_utilisation is not None:
            words.append(f"{device.mean_utilisation:.0%} busy")
        if device.throttled:
            words.append(f"throttled: {', '.join(sorted(device.throttled))}")
        told.append(", ".join(words))
    return "; ".join(told)


class ProgressListener:
    """Live progress on standard error: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(file=sys.stderr, highlight=False)
        self._live = self.console.is_terminal and not quiet
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._said = 0.0

    def note(self, text: str) -> None:
        """Say one line."""
        self.console.print(plain(text), style="dim", soft_wrap=True)

    def stage_started(self, stage: Stage, limit_s: float) -> None:
        """Show the stage."""
        self._said = time.monotonic()
        if self._live:
            columns = (
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[facts]}"),
            )
            self._progress = Progress(*columns, console=self.console, transient=True)
            self._progress.start()
            self._task = self._progress.add_task(stage.value, total=limit_s, facts="")

    def progress(self, stage: Stage, elapsed_s: float, limit_s: float, memory_bytes: int, latest: float | None) -> None:
        """Show elapsed time, the latest metric and memory."""
        facts = f"{format_duration(elapsed_s)} of {format_duration(limit_s)}, {format_size(memory_bytes)}"
        if latest is not None:
            facts += f", latest {latest:.6g}"
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=elapsed_s, facts=facts)
        elif time.monotonic() - self._said >= _QUIET_S:
            self._said = time.monotonic()
            self.console.print(f"{stage.value}: {facts}", soft_wrap=True)

    def stage_ended(self, stage: Stage) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = self._task = None

    def finished(self, record: Record) -> None:
        """Say the verdict."""
        say_record(record, self.console)

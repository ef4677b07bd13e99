"""autoresearch's results.tsv: one line an experiment."""

from __future__ import annotations

from collections.abc import Sequence

from arsandbox.sandbox.gpu.sampling import GpuUsage
from arsandbox.sandbox.models import Usage
from arsandbox.sandbox.record import Record
from arsandbox.sandbox.state import printable

HEAD = "commit\tval_bpb\tmemory_gb\tstatus\tdescription"

_STATUS = {"baseline": "keep", "keep": "keep", "discard": "discard", "pending": "discard"}


def results_tsv(records: Sequence[Record]) -> str:
    """The table of `records` (newest first), oldest first; a row without a value reads 0.000000 and `crash`.

    The table knows no more than keep, discard and crash: what is pending is not kept yet, so it reads `discard`.

    `memory_gb` is the GPUs' where the run had some, as autoresearch means it, else the sandbox's.
    """
    lines = [HEAD]
    for record in reversed(_shown(records)):
        commit = record.promotion.commit if record.promotion else record.base_commit
        value = record.metric.value
        known = record.verdict.value in _STATUS and value is not None
        memory = _peak_memory_bytes(record.usage) / 1024**3 if known else 0.0
        status = _STATUS[record.verdict.value] if known else "crash"
        what = printable(" ".join((record.description or ", ".join(record.patch.files) or "baseline").split()))
        lines.append(f"{commit[:7]}\t{value if known else 0:.6f}\t{memory:.1f}\t{status}\t{what}")
    return "\n".join(lines) + "\n"


def _peak_memory_bytes(usage: Usage) -> int:
    if not usage.gpu:
        return usage.peak_memory_bytes
    return sum(device.peak_memory_bytes for device in GpuUsage.model_validate(usage.gpu).devices)


def _shown(records: Sequence[Record]) -> list[Record]:
    """One row a measured experiment: no reruns, no confirming runs, of a confirmed one only what it came to.

    Code that was answered from the ledger has its row already, and is no crash.
    """
    confirmed = {r.confirms for r in records if r.confirms is not None and r.verdict.value != "interrupted"}
    return [r for r in records if r.rerun is None and r.part is None and r.id not in confirmed and not _resubmitted(r)]


def _resubmitted(record: Record) -> bool:
    return any(finding.code == "resubmitted" for finding in record.findings)

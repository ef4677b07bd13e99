"""A measurement's GPUs: leased for one part of it at a time, and what was found of them told to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from arsandbox.sandbox.bench import Bench, Measurement
from arsandbox.sandbox.gpu.grant import Grant, granted, require
from arsandbox.sandbox.gpu.request import GpuRequest
from arsandbox.sandbox.models import Stage
from arsandbox.sandbox.run_directory import RunDirectory

# What another user of a GPU, or its failure, does to a measurement.
_DISTURBING = ("gpu_lost", "gpu_shared")


def require_for_evaluation(bench: Bench, run: RunDirectory) -> None:
    """Raises MachineError where the evaluation needs GPUs that this machine or engine never gives.

    Asked before training, which would be lost.
    """
    request = bench.settings.evaluation_gpus
    if request.number:
        require(request, bench.engine, bench.image, labels=run.labels(bench.longest_s))


@contextmanager
def lent(
    bench: Bench, request: GpuRequest, stage: Stage, *, run: RunDirectory, into: Measurement
) -> Iterator[Grant | None]:
    """The devices of `request`, leased for `stage` while open; None where it asks for none.

    Given back whatever happens. When `stage` is over, what is wrong with them is in the findings, and in
    `disturbed` where it spoils the measurement. Raises MachineError where they are not there or not free.
    """
    if not request.number:
        yield None
        return
    ceiling, labels = bench.settings.policy_for(stage).limits.vram_bytes, run.labels(bench.longest_s)
    with granted(request, bench.engine, bench.image, ceiling=ceiling, labels=labels) as gpus:
        yield gpus
        for finding in gpus.findings():
            into.findings.append(finding)
            if finding.code in _DISTURBING:
                into.disturbed.append(finding.detail)


def spoilt(into: Measurement) -> bool:
    """Whether a device was lost or shared: what is measured on it next would be, too."""
    return any(finding.code in _DISTURBING for finding in into.findings)

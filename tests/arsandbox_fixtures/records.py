"""Records of experiments that nobody ran."""

from __future__ import annotations

from typing import Any, Protocol

import pytest

from arsandbox.sandbox.models import EngineInfo, ImageRef, Patch, Verdict
from arsandbox.sandbox.record import MetricInfo, PolicyInfo, Record


class MakeRecord(Protocol):
    """The fixture `make_record`."""

    def __call__(self, identity: str = "20240102-030405-678-abcdef", **changes: Any) -> Record:
        """A complete record with plausible values, but for `changes`."""


@pytest.fixture
def make_record() -> MakeRecord:
    """`make_record(id, **changes)`: a complete record with plausible values."""

    def make(identity: str = "20240102-030405-678-abcdef", **changes: Any) -> Record:
        values: dict[str, Any] = {
            "id": identity,
            "repo": "repo",
            "branch": "arsandbox/nov22",
            "base_commit": "a" * 40,
            "candidate_tree": "b" * 40,
            "patch": Patch(sha256="c" * 64, files=("train.py",), insertions=1, deletions=1),
            "image": ImageRef(name="cpu", digest="sha256:" + "d" * 64),
            "command": ("python", "train.py"),
            "seed": 7,
            "budget_s": 300.0,
            "grace_s": 30.0,
            "engine": EngineInfo(name="docker", version="1", runtime="runc", isolation="container", privilege="root"),
            "policy": PolicyInfo(sha256="e" * 64, effective={"network": "none"}),
            "metric": MetricInfo(name="val_bpb", goal="min", value=0.9971, source="evaluate"),
            "metrics": {"val_bpb": 0.9971},
            "trust": "L2",
            "setup_sha256": "f" * 64,
            "verdict": Verdict.KEEP,
            "reason": "val_bpb 0.9971 against 1.01: better by 0.0129",
            "started_at": "2024-01-02T03:04:05.678Z",
            "finished_at": "2024-01-02T03:09:05.678Z",
        }
        return Record(**{**values, **changes})

    return make

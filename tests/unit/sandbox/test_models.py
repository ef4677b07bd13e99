"""Domain data is frozen and closed, and verdicts map to the documented exit codes."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from pydantic import ValidationError

from arsandbox.policies.model import Limits, Policy
from arsandbox.sandbox.models import Verdict, utc_now
from arsandbox.sandbox.record import Record

CODES = {
    0: {"baseline", "keep", "discard", "pending"},
    1: {"crash", "timeout", "oom", "pids", "disk", "output", "vram", "no_metric", "invalid"},
    3: {"rejected", "tampered", "quarantine"},
    130: {"interrupted"},
}


def test_every_verdict_has_the_exit_code_of_the_contract() -> None:
    for code, names in CODES.items():
        assert {name: Verdict(name).exit_code for name in names} == dict.fromkeys(names, code)
    assert {verdict.exit_code for verdict in Verdict} == set(CODES)


def test_records_are_frozen_closed_and_survive_json(make_record: Callable[..., Record]) -> None:
    record = make_record()
    with pytest.raises(ValidationError):
        record.verdict = Verdict.DISCARD  # type: ignore[misc]
    with pytest.raises(ValidationError):
        make_record(surprise=1)
    with pytest.raises(ValidationError):
        make_record(trust="L9")
    assert Record.model_validate_json(record.model_dump_json()) == record


def test_times_are_rfc_3339_in_utc() -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", utc_now())


@pytest.mark.parametrize(
    "bad",
    [{"cpus": 0}, {"cpus": float("nan")}, {"cpus": float("inf")}, {"memory_bytes": 0}, {"memory_bytes": -1},
     {"pids": 0}, {"pids": 10**9}, {"disk_bytes": 1}, {"open_files": 0}, {"surprise": 1}],
)  # fmt: skip
def test_limits_out_of_range_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Limits(**bad)  # type: ignore[arg-type]


def test_a_policy_is_named_by_every_one_of_its_fields() -> None:
    base = Policy()
    assert base.sha256() == Policy().sha256()
    others = [
        Policy(patch_bytes=1),
        Policy(patch_files=1),
        Policy(artifact_bytes=1),
        Policy(artifact_files=1),
        *(Policy(limits=base.limits.model_copy(update={name: 10**8})) for name in Limits.model_fields),
    ]
    assert len({policy.sha256() for policy in [base, *others]}) == len(others) + 1
    with pytest.raises(ValidationError):
        Policy(network="host")  # type: ignore[arg-type]

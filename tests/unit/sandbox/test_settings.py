"""How the base commit's config and the command line combine."""

from __future__ import annotations

import pytest

from arsandbox.sandbox import config, settings
from arsandbox.sandbox.errors import MachineError, UsageError

PROJECT = config.parse(
    'command = ["python", "train.py"]\nbudget = "20s"\n[limits]\ncpus = 1\nmemory = "1g"\npids = 99\n', "test"
)


def test_the_projects_limits_stand_where_the_command_line_says_nothing() -> None:
    said_nothing = settings.Options(limits={"cpus": None, "memory_bytes": None, "pids": None, "disk_bytes": None})
    limits = settings.resolve(PROJECT, said_nothing).policy.limits
    assert (limits.cpus, limits.memory_bytes, limits.pids) == (1.0, 1024**3, 99)


def test_the_command_line_comes_over_the_project() -> None:
    limits = settings.resolve(PROJECT, settings.Options(limits={"pids": 64, "memory_bytes": None})).policy.limits
    assert (limits.pids, limits.memory_bytes) == (64, 1024**3)


def test_grace_is_a_tenth_of_the_budget_and_ten_seconds_at_least() -> None:
    assert settings.resolve(PROJECT, settings.Options()).grace_s == 10.0
    assert settings.resolve(PROJECT, settings.Options(budget_s=600.0)).grace_s == 60.0
    assert settings.resolve(PROJECT, settings.Options(grace_s=0.0)).deadline_s == 20.0


def test_without_a_config_metric_and_command_are_required() -> None:
    with pytest.raises(UsageError, match="--metric"):
        settings.resolve(None, settings.Options(metric="loss"))
    resolved = settings.resolve(None, settings.Options(metric="loss", command=("python", "x.py")))
    assert resolved.project.metric.name == "loss"


def test_more_cores_than_the_machine_has_are_refused() -> None:
    with pytest.raises(MachineError, match="cpus"):
        settings.resolve(PROJECT, settings.Options(limits={"cpus": 100_000.0}))


def test_a_limit_out_of_range_is_named() -> None:
    with pytest.raises(UsageError, match="pids"):
        settings.resolve(PROJECT, settings.Options(limits={"pids": 1}))


def test_the_setup_digest_changes_with_what_a_value_depends_on() -> None:
    def digest(options: settings.Options, **changed: str) -> str:
        arguments = {"image": "sha256:a", "fixed_tree": "b", "data": "c", **changed}
        return settings.resolve(PROJECT, options).digest(**arguments)

    base = digest(settings.Options())
    assert base == digest(settings.Options(description="x", tag="y"))
    assert base != digest(settings.Options(budget_s=21.0))
    assert base != digest(settings.Options(limits={"memory_bytes": 512 * 1024**2}))
    assert base != digest(settings.Options(command=("python", "other.py")))
    assert len({base, digest(settings.Options(), image="i"), digest(settings.Options(), data="d")}) == 3

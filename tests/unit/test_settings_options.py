"""Config and options together: what a run is measured with."""

from __future__ import annotations

import pytest

from arsandbox.sandbox.config import parse
from arsandbox.sandbox.errors import ArsandboxError, MachineError, UsageError
from arsandbox.sandbox.repository import Repository
from arsandbox.sandbox.settings import Options, load_project, resolve


def test_options_override_the_config() -> None:
    project = parse("budget = '1m'\nimage = 'a'\n[metric]\nname = 'loss'\n", "x")
    found = resolve(project, Options(image="b", budget_s=5.0, metric="acc", goal="max", command=("run",)))
    assert (found.project.image, found.budget_s, found.project.command) == ("b", 5.0, ("run",))
    assert (found.project.metric.name, found.project.metric.goal) == ("acc", "max")
    assert resolve(project, Options()).budget_s == 60.0


@pytest.mark.parametrize(("budget", "grace"), [(5.0, 10.0), (100.0, 10.0), (600.0, 60.0)])
def test_the_default_grace_is_a_tenth_and_at_least_ten_seconds(budget: float, grace: float) -> None:
    found = resolve(parse("", "x"), Options(budget_s=budget))
    assert (found.grace_s, found.deadline_s) == (grace, budget + grace)
    assert resolve(parse("", "x"), Options(budget_s=budget, grace_s=0.0)).deadline_s == budget


def test_the_config_itself_is_always_protected() -> None:
    rules = resolve(parse("editable = ['*', 'arsandbox.toml']\nprotected = ['x']", "x"), Options()).rules
    assert rules.is_protected("arsandbox.toml") and rules.is_protected("x") and rules.is_editable("y")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (Options(budget_s=0.0), UsageError),
        (Options(budget_s=-1.0), UsageError),
        (Options(metric="a b"), UsageError),
        (Options(limits={"cpus": 10**6}), MachineError),
        (Options(limits={"pids": 0}), UsageError),
        (Options(limits={"memory_bytes": 1}), UsageError),
        (Options(editable=("../x",)), UsageError),
    ],
)
def test_bad_options_are_refused(options: Options, error: type[ArsandboxError]) -> None:
    with pytest.raises(error):
        resolve(parse("", "x"), options)


def test_without_a_config_metric_and_command_are_needed() -> None:
    for options in (Options(), Options(metric="x"), Options(command=("x",))):
        with pytest.raises(UsageError, match="--metric"):
            resolve(None, options)
    assert resolve(None, Options(metric="x", command=("y",))).project.metric.name == "x"


def test_an_integer_beyond_all_bounds_in_the_config_is_a_usage_error() -> None:
    with pytest.raises(UsageError):
        resolve(parse("[limits]\npids = 0x" + "f" * 4000, "x"), Options())


def test_the_base_commit_s_config_counts_and_never_the_working_tree_s(make_repo) -> None:
    repo = make_repo({"arsandbox.toml": "image = 'committed'\n", "pyproject.toml": "[tool.arsandbox]\nimage = 'no'\n"})
    repo.write({"arsandbox.toml": "image = 'planted'\n"})
    repository = Repository.open(repo.path)
    found = load_project(repository.objects, repository.head())
    assert found is not None and found.image == "committed"


def test_a_config_that_is_no_text_is_a_usage_error(make_repo) -> None:
    repo = make_repo({"arsandbox.toml": b"\xff\xfe"})
    repository = Repository.open(repo.path)
    with pytest.raises(UsageError, match="UTF-8"):
        load_project(repository.objects, repository.head())


def test_the_digest_names_what_decides_a_measurement_and_nothing_else() -> None:
    base = resolve(parse("", "x"), Options(limits={"cpus": 1.0}))

    def digest(text: str = "", **changes: str) -> str:
        settings = resolve(parse(text, "x"), Options(limits={"cpus": 1.0}))
        return settings.digest(**{"image": "i", "fixed_tree": "t", "data": "d", **changes})

    same = base.digest(image="i", fixed_tree="t", data="d")
    assert digest() == same == digest("[decision]\nrule = 'min-delta'\n") == digest("editable = ['x']")
    others = {digest("budget = '1m'"), digest("command = ['x']"), digest("[limits]\nmemory = '1g'"),
              digest("[metric]\nname = 'z'"), digest(image="j"), digest(fixed_tree="u"), digest(data="e")}  # fmt: skip
    assert len(others) == 7 and same not in others

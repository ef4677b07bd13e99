"""Config and options together: what a run is measured with."""

from __future__ import annotations

from pathlib import Path

import pytest

from arsandbox.sandbox.config import parse
from arsandbox.sandbox.errors import ArsandboxError, MachineError, RefusedError, UsageError
from arsandbox.sandbox.repository import Repository
from arsandbox.sandbox.settings import Options, load_project, network_option, resolve


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


HOSTS = "[policy.stage.train]\nhosts = ['index.example:443']\n"


def test_the_option_network_opens_what_a_policy_names_and_closes_what_the_project_opened() -> None:
    closed, opened = parse(HOSTS, "x"), parse(HOSTS + "network = 'allowlist'\n", "x")
    none, allowlist = network_option("none"), network_option("allowlist")
    for project, option, hosts in (
        (closed, None, ()),
        (closed, allowlist, ("index.example:443",)),
        (closed, none, ()),
        (opened, None, ("index.example:443",)),
        (opened, none, ()),
    ):
        found = resolve(project, Options(network=option))
        assert (found.policy.hosts, found.policy.network) == (hosts, "allowlist" if hosts else "none")
        assert found.policy_for("propose").hosts == () and found.policy_for("evaluate").hosts == ()


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("", "--network: allowlist is asked for, but no policy names a host"),
        ("[policy]\nnetwork = 'none'\n", "train stage: policy field network: --network asks for allowlist, but"),
    ],
)
def test_the_option_network_never_loosens(config: str, says: str) -> None:
    with pytest.raises(RefusedError) as refused:
        resolve(parse(config, "x"), Options(network=network_option("allowlist")))
    assert says in refused.value.message and refused.value.hint


def test_the_owner_bounds_the_option_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = tmp_path / "owner.toml"
    owner.write_text("network = 'none'\n")
    monkeypatch.setenv("ARSANDBOX_POLICY", str(owner))
    with pytest.raises(RefusedError, match=r"owner\.toml"):
        resolve(parse(HOSTS, "x"), Options(network=network_option("allowlist")))


def test_what_training_reaches_is_part_of_the_set_up() -> None:
    project = parse(HOSTS, "x")

    def setup(option: str | None) -> str:
        return resolve(project, Options(network=network_option(option))).digest(image="i", fixed_tree="t", data=None)

    assert setup(None) == setup("none") != setup("allowlist")


def test_the_engine_of_the_config_changes_no_set_up() -> None:
    found = [resolve(parse(text, "x"), Options()) for text in ("", "engine = 'embedded'\n")]
    assert [one.project.engine for one in found] == ["docker", "embedded"]
    assert len({one.digest(image="i", fixed_tree="t", data=None) for one in found}) == 1


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

"""Policies meet: the tighter value of each field; sources that ask for more than a stricter one allows are refused."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arsandbox.policies import sources
from arsandbox.policies.meet import Effective, Layer, combine, everything, meet, narrowed, rules, said
from arsandbox.policies.model import ISOLATION, Limits, Policy, PolicyFile
from arsandbox.sandbox import policy_sources
from arsandbox.sandbox.config import parse
from arsandbox.sandbox.errors import MachineError, RefusedError, UsageError
from arsandbox.sandbox.policy_sources import STAGES, stage_policies

HOSTS = ["a.org:443", "b.org:443", "c.org:80"]
NAMES = ["*", "HF_*", "HF_HOME", "A", "AB", "A*"]
PLACES = ["/", "/data", "/data/x", "/data/xy", "/srv"]


def subset(values: list[str]) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(values), max_size=4)


hosts = st.one_of(st.just(["*"]), subset(HOSTS))
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "network": st.sampled_from(["none", "allowlist"]),
    "hosts": hosts,
    "private_hosts": hosts,
    "gpus": st.integers(0, 4),
    "environment": subset(NAMES),
    "mounts": subset(PLACES),
    "caches": st.one_of(st.just(["*"]), subset(["dataset", "tokenizer", "triton"])),
    "isolation": st.sampled_from(ISOLATION),
    "enforced": subset(["memory", "pids", "disk"]),
    "promote_trust": st.sampled_from(["L0", "L1", "L2", "L3", "L4"]),
    "self_reported": st.sampled_from(["on-request", "never"]),
    "editable": subset(["train.py", "src/"]),
    "protected": subset(["x", "y"]),
    **{name: st.integers(1, 1000) for name in ("patch_bytes", "patch_files", "artifact_bytes", "artifact_files")},
}
LIMITS: dict[str, st.SearchStrategy[Any]] = {
    "cpus": st.floats(1, 8),
    "wall_s": st.floats(1, 1000),
    **{name: st.integers(2**24, 2**26) for name in Limits.model_fields if name.endswith("_bytes")},
    **{name: st.integers(16, 1000) for name in ("pids", "disk_inodes", "open_files")},
}
limits = st.fixed_dictionaries({}, optional=LIMITS)
tables = st.fixed_dictionaries({}, optional={**FIELDS, "limits": limits})
policies = tables.map(Policy.model_validate)


def test_every_field_has_a_rule_and_a_strategy() -> None:
    assert set(FIELDS) | {"limits"} == set(Policy.model_fields)
    assert set(LIMITS) == set(Limits.model_fields)
    assert set(rules()) == {f"limits.{name}" for name in LIMITS} | set(FIELDS)


@given(policies, policies, policies)
def test_the_meet_is_a_meet(one: Policy, two: Policy, three: Policy) -> None:
    assert meet(one, two) == meet(two, one)
    assert meet(one, meet(two, three)) == meet(meet(one, two), three)
    assert meet(one, one) == one
    assert meet(meet(one, two), two) == meet(one, two)


@given(policies, policies)
def test_what_is_narrowed_is_never_looser_than_before_or_than_what_narrows_it(one: Policy, by: Policy) -> None:
    found = narrowed(Effective(one), Layer("the record", by))
    assert meet(found.policy, one) == found.policy
    told = everything(found.policy)
    for name, value in said(by).items():
        assert rules()[name].meet(told[name], value) == told[name], name


@given(policies, policies, policies)
def test_what_comes_out_is_never_looser_than_any_source(owner: Policy, project: Policy, line: Policy) -> None:
    ceiling = sources.ceiling("train")
    askers = [Layer("p", project, local=False), Layer("c", line)]
    try:
        found = combine(ceiling, [Layer("o", owner)], askers, Layer("d", Policy()))
    except RefusedError as error:
        assert "asks for" in error.message and "allows only" in error.message
        return
    for source in (owner, project, line):
        for name, value in said(source).items():
            if name in ("hosts", "private_hosts", "network"):
                continue  # closed where nobody names a host: tighter still, and tested by itself
            assert rules()[name].meet(value, everything(found.policy)[name]) == everything(found.policy)[name], name
    assert set(found.sources) == set(rules())


@given(st.permutations(range(3)), policies, policies, policies)
def test_the_order_of_owners_does_not_matter(order: list[int], one: Policy, two: Policy, three: Policy) -> None:
    layers = [Layer("1", one), Layer("2", two), Layer("3", three)]
    results = {
        combine(sources.ceiling("train"), chosen, [], Layer("d", Policy())).policy.sha256()
        for chosen in (layers, [layers[i] for i in order])
    }
    assert len(results) == 1


# --- the sources of this machine ------------------------------------------------------------------------------


@pytest.fixture
def owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes the machine owner's files."""
    monkeypatch.setattr(sources, "OWNER_FILE", tmp_path / "etc.toml")
    monkeypatch.setattr(policy_sources, "_cores", lambda: 64.0)
    monkeypatch.delenv("ARSANDBOX_POLICY", raising=False)
    if os.geteuid() != 0:  # the file of a test is then not root's
        monkeypatch.setattr(sources, "_require_owned", lambda path: None)

    def write(text: str, *, variable: str | None = None) -> None:
        (tmp_path / "etc.toml").write_text(text)
        (tmp_path / "etc.toml").chmod(0o644)
        if variable is not None:
            (tmp_path / "mine.toml").write_text(variable)
            monkeypatch.setenv("ARSANDBOX_POLICY", str(tmp_path / "mine.toml"))

    return write


# Per field: what the owner allows, what a project asks for beyond it.
TIGHT: dict[str, tuple[str, str]] = {
    "limits.cpus": ("[limits]\ncpus = 1", "[policy.limits]\ncpus = 2"),
    "limits.memory_bytes": ("[limits]\nmemory_bytes = '1g'", "[policy.limits]\nmemory_bytes = '2g'"),
    "limits.pids": ("[limits]\npids = 10", "[policy.limits]\npids = 11"),
    "limits.disk_bytes": ("[limits]\ndisk_bytes = '1g'", "[policy.limits]\ndisk_bytes = '2g'"),
    "limits.disk_inodes": ("[limits]\ndisk_inodes = 100", "[policy.limits]\ndisk_inodes = 101"),
    "limits.tmp_bytes": ("[limits]\ntmp_bytes = '1m'", "[policy.limits]\ntmp_bytes = '2m'"),
    "limits.shm_bytes": ("[limits]\nshm_bytes = '1m'", "[policy.limits]\nshm_bytes = '2m'"),
    "limits.output_bytes": ("[limits]\noutput_bytes = '1m'", "[policy.limits]\noutput_bytes = '2m'"),
    "limits.vram_bytes": ("[limits]\nvram_bytes = '8g'", "[policy.limits]\nvram_bytes = '9g'"),
    "limits.open_files": ("[limits]\nopen_files = 100", "[policy.limits]\nopen_files = 101"),
    "limits.wall_s": ("[limits]\nwall_s = '1m'", "[policy.limits]\nwall_s = '2m'"),
    "network": ("network = 'none'", "[policy]\nnetwork = 'allowlist'"),
    "hosts": ("hosts = ['a.org:443']", "[policy]\nhosts = ['a.org:443', 'b.org:443']"),
    "private_hosts": ("private_hosts = []", "[policy]\nprivate_hosts = ['a.org:443']"),
    "gpus": ("gpus = 1", "[policy]\ngpus = 2"),
    "environment": ("environment = ['HF_*']", "[policy]\nenvironment = ['HF_HOME', 'X']"),
    "mounts": ("mounts = ['/data']", "[policy]\nmounts = ['/srv']"),
    "caches": ("caches = ['dataset']", "[policy]\ncaches = ['dataset', 'triton']"),
    "isolation": ("isolation = 'container'", "[policy]\nisolation = 'namespaces'"),
    "promote_trust": ("promote_trust = 'L2'", "[policy]\npromote_trust = 'L0'"),
    "self_reported": ("self_reported = 'never'", "[policy]\nself_reported = 'on-request'"),
    "patch_bytes": ("patch_bytes = 10", "[policy]\npatch_bytes = 11"),
    "patch_files": ("patch_files = 1", "[policy]\npatch_files = 2"),
    "artifact_bytes": ("artifact_bytes = 10", "[policy]\nartifact_bytes = 11"),
    "artifact_files": ("artifact_files = 1", "[policy]\nartifact_files = 2"),
}


@pytest.mark.parametrize("name", TIGHT)
def test_nobody_asks_for_more_than_the_owner_allows(owner: Any, name: str) -> None:
    allowed, asked = TIGHT[name]
    owner(allowed)
    with pytest.raises(RefusedError) as caught:
        stage_policies(parse(asked, "x"))
    for part in (name, "etc.toml", "[policy] of the project", "asks for", "allows only"):
        assert part in caught.value.message
    assert caught.value.exit_code == 3


def test_every_field_that_could_be_loosened_is_among_them() -> None:
    assert set(TIGHT) == {name for name, rule in rules().items() if not rule.adds}


def test_lists_of_demands_add_up(owner: Any) -> None:
    owner("enforced = ['memory']\nprotected = ['a']\neditable = ['x/']")
    found = stage_policies(parse("[policy]\nenforced = ['pids']\nprotected = ['b']\neditable = ['y/']", "x"))["train"]
    assert found.policy.enforced == ("memory", "pids")
    assert found.policy.protected == ("a", "b")
    assert found.policy.editable == (("x/",), ("y/",))


def test_the_command_line_does_not_loosen_the_project_either(owner: Any) -> None:
    project = parse("[limits]\nmemory = '1g'", "x")
    with pytest.raises(RefusedError, match=r"the command line asks for 2\.0 GiB.*\[limits\] of the project.*1\.0 GiB"):
        stage_policies(project, limits={"memory_bytes": 2 * 1024**3})
    with pytest.raises(RefusedError, match="--policy gpu asks for 64"):
        stage_policies(project, named="gpu")


def test_the_owners_variable_does_not_loosen_the_owners_file(owner: Any) -> None:
    owner("gpus = 1\n[limits]\npids = 100", variable="gpus = 4\n[limits]\npids = 50\n")
    found = stage_policies(parse("[policy]\ngpus = 1", "x"))["train"]
    assert (found.policy.gpus, found.policy.limits.pids) == (1, 50)
    assert "ARSANDBOX_POLICY" in found.sources["limits.pids"]
    with pytest.raises(RefusedError, match=r"gpus.*etc\.toml"):
        stage_policies(parse("[policy]\ngpus = 2", "x"))


def test_a_wider_bound_is_no_grant(owner: Any) -> None:
    owner("gpus = 8\nnetwork = 'allowlist'\nhosts = ['a.org:443']\n[limits]\nmemory_bytes = '512g'")
    train = stage_policies(parse("", "x"))["train"].policy
    assert (train.gpus, train.network, train.hosts) == (0, "none", ())
    assert train.limits.memory_bytes == Policy().limits.memory_bytes


def test_stages_differ(owner: Any) -> None:
    owner("")
    prepare = "[prepare]\ncommand = ['x']\noutputs = ['o']\nnetwork = 'allowlist'\nhosts = ['index.example:443']"
    found = stage_policies(parse(prepare, "x"))
    assert set(found) == set(STAGES)
    assert (found["prepare"].policy.network, found["prepare"].policy.hosts) == ("allowlist", ("index.example:443",))
    assert all(found[stage].policy.network == "none" for stage in STAGES if stage != "prepare")


@pytest.mark.parametrize("stage", ["evaluate", "model", "score"])
def test_what_judges_never_gets_a_network(owner: Any, stage: str) -> None:
    owner("")
    with pytest.raises(RefusedError, match=f"{stage} stage.*network.*built-in"):
        stage_policies(parse(f"[policy.stage.{stage}]\nnetwork = 'allowlist'\nhosts = ['a.org:443']", "x"))


@pytest.mark.parametrize("field", ["private_hosts = ['10.0.0.1:80']", "mounts = ['/etc']"])
def test_a_project_names_nothing_of_this_machine_unless_the_owner_does(owner: Any, field: str) -> None:
    owner("")
    with pytest.raises(RefusedError, match="until the machine's owner names them"):
        stage_policies(parse(f"[policy]\n{field}", "x"))
    owner(field)
    assert stage_policies(parse(f"[policy]\n{field}", "x"))["train"]


def test_no_host_named_is_no_network(owner: Any) -> None:
    owner("")
    assert stage_policies(parse("[policy.stage.train]\nnetwork = 'allowlist'", "x"))["train"].policy.network == "none"


@pytest.mark.parametrize("name", sources.PRESETS)
def test_presets_are_valid_and_can_be_asked_for(owner: Any, name: str) -> None:
    owner("")
    assert isinstance(sources.preset(name), PolicyFile)
    if name in ("prepare", "propose"):
        return  # they ask for a network for every stage, and judges never get one
    assert stage_policies(parse("", "x"), named=name)


def test_presets_of_stages_say_everything() -> None:
    for name in {sources.preset_of(stage) for stage in STAGES}:
        assert set(said(sources.preset(name))) == set(rules()), name
    # Mounts: whatever the machine's owner allows, which is nothing where there is no owner's word.
    assert said(sources.preset("default")) == {**everything(Policy()), "mounts": ("/",)}


def test_the_default_asks_for_no_more_cores_than_there_are(owner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    owner("")
    monkeypatch.setattr(policy_sources, "_cores", lambda: 2.0)
    assert stage_policies(parse("", "x"))["train"].policy.limits.cpus == 2.0
    with pytest.raises(MachineError, match="cpus"):
        stage_policies(parse("[limits]\ncpus = 3", "x"))


@pytest.mark.parametrize(
    ("text", "said_there"),
    [
        ("gpu = 1", "did you mean 'gpus'"),
        ("[limits]\nmemory = '1g'", "memory_bytes"),
        ("[stage.training]\ngpus = 1", "stage"),
        ("hosts = ['a.org']", "host:port"),
        ("hosts = ['*.org:443']", "host:port"),
        ("hosts = ['a.org:99999']", "host:port"),
        ("environment = ['LD_PRELOAD']", "reserved"),
        ("environment = ['A*B']", "variable"),
        ("mounts = ['data']", "absolute"),
        ("mounts = ['/a/../b']", "absolute"),
        ("patch_bytes = '1x'", "size"),
        ("gpus = -1", "gpus"),
        ("x =", "TOML"),
        ("gpus = 1" + "0" * 5000, "TOML"),
    ],
)
def test_a_malformed_file_is_one_line_with_a_hint(tmp_path: Path, text: str, said_there: str) -> None:
    file = tmp_path / "p.toml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        sources.read(file)
    told = f"{caught.value.message} {caught.value.hint}"
    assert said_there in told and str(file) in told and "\n" not in told


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    for path in (tmp_path / "missing.toml", tmp_path, tmp_path / "binary.toml"):
        with pytest.raises(UsageError, match="policy"):
            sources.read(path)
    with pytest.raises(UsageError, match="strikt") as caught:
        sources.named("strikt")
    assert "strict" in caught.value.hint


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file that belongs to root")
def test_an_owners_file_that_others_can_write_is_refused(owner: Any) -> None:
    owner("gpus = 8")
    sources.OWNER_FILE.chmod(0o666)
    with pytest.raises(UsageError, match="others than root"):
        stage_policies(parse("", "x"))


@given(st.lists(st.sampled_from(NAMES), max_size=4), st.lists(st.sampled_from(NAMES), max_size=4), st.sampled_from(
    ["HF_HOME", "HF_X", "A", "AB", "ABC", "Z"]))  # fmt: skip
def test_a_variable_passes_the_meet_where_it_passes_both(one: list[str], two: list[str], name: str) -> None:
    def passes(policy: Policy) -> bool:
        return any(name == p or (p.endswith("*") and name.startswith(p[:-1])) for p in policy.environment)

    first, second = (Policy.model_validate({"environment": patterns}) for patterns in (one, two))
    assert passes(meet(first, second)) == (passes(first) and passes(second))


def test_a_directory_covers_what_is_below_and_nothing_else() -> None:
    for one, two in itertools.product(PLACES, PLACES):
        found = meet(Policy(mounts=(one,)), Policy(mounts=(two,))).mounts
        inside = one == two or two.startswith(one.rstrip("/") + "/") or one.startswith(two.rstrip("/") + "/")
        assert found == ((max(one, two, key=len),) if inside else ()), (one, two)

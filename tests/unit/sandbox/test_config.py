"""arsandbox.toml: good files, every kind of bad value, and arbitrary text."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from arsandbox.sandbox.config import ProjectConfig, parse, parse_pyproject
from arsandbox.sandbox.config_values import repository_path
from arsandbox.sandbox.errors import UsageError

FULL = """
image = "cuda12"
budget = "5m"
grace = "0s"
command = ["python", "train.py"]
editable = ["train.py", "src/"]
protected = ["prepare.py", "./evaluate.py"]
[metric]
name = "val_bpb"
goal = "min"
source = "evaluate"
plausible = [0.2, 16.0]
[prepare]
command = ["python", "prepare.py"]
outputs = [".cache/autoresearch"]
timeout = "20m"
[evaluate]
command = ["python", "evaluate.py", "out/"]
artifacts = ["out/"]
data = ["heldout/"]
[environment]
TOKENIZERS_PARALLELISM = "false"
[limits]
cpus = 4
memory = "16g"
disk = "2g"
tmp = 1048576
[decision]
rule = "min-delta"
min_delta = 0.001
"""


def test_a_full_file_is_read() -> None:
    found = parse(FULL, "arsandbox.toml")
    assert (found.image, found.budget, found.grace) == ("cuda12", 300.0, 0.0)
    assert found.editable == ("train.py", "src") and found.protected == ("prepare.py", "evaluate.py")
    assert found.metric.plausible == (0.2, 16.0)
    assert found.prepare is not None and found.prepare.timeout == 1200.0
    assert found.evaluate is not None and found.evaluate.artifacts == ("out",) and found.evaluate.data == ("heldout",)
    assert (found.limits.memory, found.limits.disk, found.limits.tmp) == (16 * 1024**3, 2 * 1024**3, 1024**2)
    assert (found.decision.rule, found.decision.min_delta) == ("min-delta", 0.001)


def test_an_empty_file_means_the_defaults() -> None:
    assert parse("", "x") == ProjectConfig()


def test_pyproject_is_read_from_its_own_table_alone() -> None:
    assert parse_pyproject("[project]\nname = 'x'\n", "pyproject.toml") is None
    assert parse_pyproject("tool = 3\n", "pyproject.toml") is None
    found = parse_pyproject("[tool.other]\nx = 1\n[tool.arsandbox]\nimage = 'abc'\n", "pyproject.toml")
    assert found is not None and found.image == "abc"
    with pytest.raises(UsageError):
        parse_pyproject("[tool]\narsandbox = 3\n", "pyproject.toml")


@pytest.mark.parametrize(
    ("text", "key", "suggestion"),
    [
        ("budgt = '5m'", "budgt", "budget"),
        ("edit = ['a']", "edit", "editable"),
        ("[metrics]\nname = 'x'", "metrics", "metric"),
        ("[metric]\nnme = 'x'", "metric.nme", "name"),
        ("[limits]\nmemry = '1g'", "limits.memry", "memory"),
        ("[prepare]\ncommand = ['x']\noutput = ['y']", "prepare.output", "outputs"),
        ("[decision]\nrul = 'greedy'", "decision.rul", "rule"),
        ("qqqq = 1", "qqqq", "known keys"),
        ("[limits]\ngpu_magic = 1", "limits.gpu_magic", "memory"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_one(text: str, key: str, suggestion: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text, "arsandbox.toml at abc")
    assert "arsandbox.toml at abc" in caught.value.message and repr(key) in caught.value.message
    assert suggestion in caught.value.hint


BAD = [
    ("image = 3", "image"),
    ("budget = '5'", "budget"),
    ("budget = 'soon'", "budget"),
    ("budget = -1", "budget"),
    ("budget = nan", "budget"),
    ("budget = [1]", "budget"),
    ("grace = '-1s'", "grace"),
    ("command = 'python train.py'", "command"),
    ("command = []", "command"),
    ("command = [1]", "command"),
    ("editable = []", "editable"),
    ("editable = 'train.py'", "editable"),
    ("editable = ['/etc/passwd']", "editable"),
    ("editable = ['../x']", "editable"),
    ("editable = ['a/../../x']", "editable"),
    ("editable = ['']", "editable"),
    ("editable = ['.']", "editable"),
    ("editable = ['/']", "editable"),
    ('editable = ["a\\u0000b"]', "editable"),
    ("protected = ['..']", "protected"),
    ("metric = 'val_bpb'", "metric"),
    ("[metric]\nname = ''", "metric.name"),
    ("[metric]\nname = 'a b'", "metric.name"),
    ("[metric]\nname = '9x'", "metric.name"),
    ('[metric]\nname = "a\\n"', "metric.name"),
    (f"[metric]\nname = '{'a' * 101}'", "metric.name"),
    ("[metric]\ngoal = 'minimum'", "metric.goal"),
    ("[metric]\nsource = 'guess'", "metric.source"),
    ("[metric]\nplausible = [1]", "metric.plausible"),
    ("[metric]\nplausible = [0, inf]", "metric.plausible"),
    ("[metric]\nplausible = [nan, 1]", "metric.plausible"),
    ("[metric]\nplausible = [2, 1]", "metric.plausible"),
    ("[metric]\nplausible = [1, 1]", "metric.plausible"),
    ("[metric]\nsource = 'evaluate'", "evaluate"),
    ("[evaluate]\ncommand = ['x']\nartifacts = ['out']", "metric.source"),
    ("[prepare]\ncommand = ['x']", "prepare.outputs"),
    ("[prepare]\noutputs = ['x']", "prepare.command"),
    ("[prepare]\ncommand = ['x']\noutputs = []", "prepare.outputs"),
    ("[prepare]\ncommand = ['x']\noutputs = ['/abs']", "prepare.outputs"),
    ("[prepare]\ncommand = ['x']\noutputs = ['o']\ntimeout = 'x'", "prepare.timeout"),
    ("[environment]\nLD_PRELOAD = 'x'", "LD_PRELOAD"),
    ("[environment]\nARSANDBOX_SEED = '1'", "ARSANDBOX_SEED"),
    ("[environment]\nNVIDIA_VISIBLE_DEVICES = 'all'", "NVIDIA_VISIBLE_DEVICES"),
    ("[environment]\n'A B' = 'x'", "A B"),
    ("[environment]\n'A=B' = 'x'", "A=B"),
    ("[environment]\nA = 1", "environment.A"),
    ("[limits]\ncpus = 0", "limits.cpus"),
    ("[limits]\ncpus = 'many'", "limits.cpus"),
    ("[limits]\nmemory = 'lots'", "limits.memory"),
    ("[limits]\nmemory = '1.5'", "limits.memory"),
    ("[limits]\npids = 1.5", "limits.pids"),
    ("[decision]\nrule = 'confirm it'", "decision.rule"),
    ("[decision]\nmin_delta = -1", "decision.min_delta"),
    ("[decision]\nmin_delta = inf", "decision.min_delta"),
]


@pytest.mark.parametrize(("text", "key"), BAD)
def test_a_bad_value_is_one_line_that_names_file_and_key(text: str, key: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text, "arsandbox.toml at abc")
    message = caught.value.message
    assert "arsandbox.toml at abc" in message and key in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "text",
    [
        "budget = inf",
        "[prepare]\ncommand = ['x']\noutputs = ['o']\ntimeout = inf",
        "grace = 1e300",
        "budget = 1e9",
    ],
)
def test_a_time_without_end_is_refused_as_a_number_as_it_is_as_text(text: str) -> None:
    with pytest.raises(UsageError):
        parse(text, "x")


@pytest.mark.parametrize(
    "text", ["budget = true", "[limits]\npids = true", "[limits]\ncpus = true", "[decision]\nmin_delta = false"]
)
def test_a_boolean_is_not_a_number(text: str) -> None:
    with pytest.raises(UsageError):
        parse(text, "x")


@pytest.mark.parametrize(
    "text", ['command = ["a\\u0000b"]', '[environment]\nA = "a\\u0000b"'], ids=["command", "environment"]
)
def test_a_nul_that_no_program_can_be_given_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse(text, "x")


@pytest.mark.parametrize("pattern", ["\\\\", "a\\\\"], ids=["backslash", "trailing"])
def test_a_pattern_that_cannot_be_matched_with_is_refused_here_and_not_later(pattern: str) -> None:
    for key in ("editable", "protected"):
        with pytest.raises(UsageError):
            parse(f'{key} = ["{pattern}"]', "x")


@pytest.mark.parametrize(
    "text", ["= 1", "a = ", "[a", "a = 1\na = 2", "\x00", "a = 2020-99-99", '"\\ud800" = 1', "\ufeffa"]
)
def test_text_that_is_no_toml_is_refused_with_the_place(text: str) -> None:
    with pytest.raises(UsageError, match="x: not valid TOML"):
        parse(text, "x")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("a = " + "[" * 5000, id="nested-arrays"),
        pytest.param("a = " + "{a=" * 5000, id="nested-tables"),
        pytest.param(".".join("a" * 3000) + " = 1", id="long-dotted-key"),
        pytest.param("image = " + "9" * 5000, id="long-integer"),
        pytest.param("image = 0x" + "f" * 5000, id="long-hexadecimal"),
        pytest.param("budget = 0x" + "f" * 400, id="integer-beyond-floats"),
        pytest.param("budget = '" + "9" * 400 + "h'", id="long-duration"),
        pytest.param("[limits]\nmemory = '" + "9" * 400 + "g'", id="long-size"),
    ],
)
def test_hostile_toml_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        parse(text, "x")


SCALARS = st.one_of(
    st.integers(-(2**70), 2**70).map(str),
    st.floats().map(lambda value: str(value).replace("e+", "e")),
    st.booleans().map(lambda value: str(value).lower()),
    st.text(alphabet=st.characters(codec="utf-8", exclude_categories=("Cc",), exclude_characters="'"), max_size=12).map(
        lambda value: f"'{value}'"
    ),
    st.sampled_from(["1979-05-27", "07:32:00", "'5m'", "'16g'", "[]", "{}", "[1, 'a']", "{a = 1}", "['train.py']"]),
)
KEYS = st.sampled_from(
    [*ProjectConfig.model_fields, "name", "goal", "source", "plausible", "outputs", "artifacts", "timeout", "cpus",
     "memory", "pids", "disk", "rule", "min_delta", "unknown", "'quo ted'", "a.b"],
)  # fmt: skip
LINES = st.one_of(
    st.tuples(KEYS, SCALARS).map(lambda pair: f"{pair[0]} = {pair[1]}"),
    st.sampled_from(["[metric]", "[prepare]", "[evaluate]", "[limits]", "[decision]", "[environment]", "[[metric]]"]),
)


@settings(max_examples=300)
@given(st.lists(LINES, max_size=8).map("\n".join))
@example("metric = []")
@example("[tool.arsandbox]\n")
def test_arbitrary_tables_never_raise_anything_but_usage_errors(text: str) -> None:
    for read in (parse, parse_pyproject):
        try:
            read(text, "x")
        except UsageError as error:
            assert error.message.startswith("x") and "\n" not in error.message


@settings(max_examples=200)
@given(st.text(max_size=200))
def test_arbitrary_text_never_raises_anything_but_usage_errors(text: str) -> None:
    for read in (parse, parse_pyproject):
        try:
            read(text, "x")
        except UsageError:
            pass


@given(st.text(max_size=30))
def test_a_repository_path_stays_below_the_root(text: str) -> None:
    try:
        found = repository_path(text)
    except ValueError:
        return
    parts = found.split("/")
    assert found and not found.startswith("/") and ".." not in parts and "" not in parts and "." not in parts

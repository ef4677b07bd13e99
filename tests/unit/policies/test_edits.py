"""The gate in front of every run: what a candidate may never change."""

from __future__ import annotations

import string

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from arsandbox.policies.edits import Edit, EditRules

FILE = "100644"
RULES = EditRules(editable=("train.py", "src"), protected=("prepare.py", "src/eval", "arsandbox.toml"))
ANYTHING = EditRules(editable=("*",), protected=())


def refused(rules: EditRules, path: str, old: str | None = FILE, new: str | None = FILE) -> str | None:
    lines = rules.refusals([Edit(path, old, new)])
    assert len(lines) <= 1
    if lines:
        assert "\n" not in lines[0] and lines[0].isprintable()
    return lines[0] if lines else None


@pytest.mark.parametrize("path", ["train.py", "src/model.py", "src/deep/er/x.txt", "src/evaluation.py", "src/a é.py"])
@pytest.mark.parametrize(("old", "new"), [(FILE, FILE), (None, FILE), (FILE, None), (FILE, "100755")])
def test_ordinary_edits_pass(path: str, old: str | None, new: str | None) -> None:
    assert refused(RULES, path, old, new) is None


@pytest.mark.parametrize(
    "path",
    ["prepare.py", "src/eval", "src/eval/a.py", "src/eval/b/c.py", "arsandbox.toml"],
)
@pytest.mark.parametrize(("old", "new"), [(FILE, FILE), (None, FILE), (FILE, None)])
def test_protected_paths_are_refused_and_called_protected(path: str, old: str | None, new: str | None) -> None:
    assert "protected" in (refused(RULES, path, old, new) or "")


@pytest.mark.parametrize(
    "path", ["other.py", "lib/train.py", "train.pyc", "Train.py", "xsrc/a", "evaluate.py", "README"]
)
def test_paths_outside_editable_are_refused(path: str) -> None:
    assert "editable" in (refused(RULES, path) or "")


@pytest.mark.parametrize(
    "path",
    [
        ".git", ".git/config", ".git/hooks/post-commit", "a/.git/config", ".GIT/config", ".gIt/hooks/x", "a/.Git",
        ".gitattributes", ".gitmodules", ".gitignore", "a/.gitattributes", ".github/workflows/x.yml",
        ".GitHub/workflows/x.yml", ".gitlab-ci.yml", ".circleci/config.yml", ".envrc", "a/.envrc", ".env", "a/.ENV",
        ".env.local",
        ".vscode/settings.json", ".idea/x", ".cursorrules", ".cursor/rules", ".claude/settings.json", "CLAUDE.md",
        "claude.md", "AGENTS.md", "a/AGENTS.md", ".mcp.json", ".aider.conf.yml", "conftest.py", "a/b/conftest.py",
        "Conftest.py", "sitecustomize.py", "a/sitecustomize.py", "usercustomize.py", "x.pth", "a/b/evil.PTH", ".pth",
        ".pre-commit-config.yaml", "tox.ini", "setup.cfg", "pytest.ini", "arsandbox.toml", "sub/arsandbox.toml",
    ],
)  # fmt: skip
def test_files_that_tools_run_or_obey_are_refused_even_when_a_pattern_allows_everything(path: str) -> None:
    assert refused(ANYTHING, path) is not None
    assert refused(EditRules(editable=("**",), protected=()), path) is not None
    top = path.split("/")[0]
    if "/" in path and top not in (".git",):
        assert refused(EditRules(editable=(top,), protected=()), path) is not None


def test_the_owner_may_name_such_a_file_literally() -> None:
    rules = EditRules(editable=("tests/conftest.py",), protected=())
    assert refused(rules, "tests/conftest.py") is None
    assert refused(rules, "conftest.py") is not None


@pytest.mark.parametrize(
    "near", ["gitignore", "my.github.txt", "conftest.pyx", "a.pthx", "src/agents.mdx", "envrc", ".envs"]
)
def test_names_that_only_look_alike_pass(near: str) -> None:
    assert refused(ANYTHING, near) is None


@pytest.mark.parametrize("mode", ["120000", "160000", "040000", "104755", "100664"])
def test_anything_but_a_regular_file_is_refused_before_and_after(mode: str) -> None:
    words = {"120000": "symlink", "160000": "submodule"}.get(mode, mode)
    assert words in (refused(RULES, "train.py", FILE, mode) or "")
    assert words in (refused(RULES, "train.py", mode, FILE) or "")
    assert words in (refused(RULES, "train.py", mode, None) or "")


@pytest.mark.parametrize(
    "name",
    [
        "src/a\u200bb.py", "src/\u202eyp.x", "src/a\nb", "src/a\x1b[2J", "src/a\tb", "src/a\x7f", "src/\ufeffx",
        "src/\u2066x", "src/a\u00adb", "src/e\u0301.py", "src/\u212bng", "src/\ue000", "src/\U000e0041", "src/\udcff",
        "src/\u0378", "src/.g\u200cit/config", "src/a\u00a0b", "src/a\u2028b", "src/\u3164",
    ],
)  # fmt: skip
def test_invisible_ambiguous_and_unnormalised_names_are_refused(name: str) -> None:
    line = refused(RULES, name)
    assert line is not None
    assert line.isascii() or "\u3164" in line


@pytest.mark.parametrize(
    "path", ["../train.py", "../../etc/passwd", "/etc/passwd", "src/../prepare.py", "src/./x", "src//x", ".", "..", "",
             "src/..", "./train.py", "train.py/", "src/../../x"],
)  # fmt: skip
def test_paths_that_are_no_clean_repository_paths_are_refused(path: str) -> None:
    """A crafted tree object may hold such names; nothing behind the gate can handle them."""
    wide = EditRules(editable=("**", "src/**", "src/*"), protected=())
    assert [rules for rules in (RULES, ANYTHING, wide) if refused(rules, path) is None] == []


NAME = st.text(alphabet=string.ascii_letters + string.digits + "._-é ", min_size=1, max_size=8).filter(
    lambda name: name not in (".", "..") and name == name.strip()
)
PATH = st.lists(NAME, min_size=1, max_size=4).map("/".join)
PATTERN = st.one_of(PATH, PATH.map(lambda path: path + "/*"), st.just("*"), st.just("**/*.py"))


@given(
    editable=st.lists(PATTERN, min_size=1, max_size=4),
    protected=st.lists(PATH, min_size=1, max_size=4),
    below=st.lists(NAME, max_size=3),
    data=st.data(),
)
@example(editable=["*"], protected=["a"], below=[], data=None)
def test_nothing_that_is_protected_or_below_it_ever_passes(
    editable: list[str], protected: list[str], below: list[str], data: st.DataObject | None
) -> None:
    target = data.draw(st.sampled_from(protected)) if data else protected[0]
    path = "/".join([target, *below])
    rules = EditRules(editable=(*editable, target, path), protected=tuple(protected))
    assert rules.is_protected(path) and not rules.is_editable(path)
    for old, new in ((FILE, FILE), (None, FILE), (FILE, None), (FILE, "120000")):
        assert refused(rules, path, old, new) is not None


@given(st.text(min_size=1, max_size=30), st.sampled_from([None, FILE, "100755", "120000"]))
def test_any_name_at_all_is_judged_and_what_passes_is_harmless(path: str, mode: str | None) -> None:
    for rules in (RULES, ANYTHING):
        if refused(rules, path, FILE, mode) is None:
            assert path.isprintable() and mode != "120000"
            assert not any(part.casefold().startswith(".git") for part in path.split("/"))
            assert ".." not in path.split("/") and not path.startswith("/")


@given(st.lists(st.tuples(PATH, st.sampled_from([FILE, None, "120000"])), max_size=8))
def test_each_edit_is_judged_alone(edits: list[tuple[str, str | None]]) -> None:
    rows = [Edit(path, FILE, mode) for path, mode in edits]
    assert RULES.refusals(rows) == [line for row in rows for line in RULES.refusals([row])]
    assume(edits)
    assert len(RULES.refusals(rows)) == sum(
        refused(RULES, row.path, row.old_mode, row.new_mode) is not None for row in rows
    )

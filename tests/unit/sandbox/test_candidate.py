"""Freezing a candidate: what the working tree holds, byte for byte, and nothing that it points to."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from arsandbox.policies.edits import EditRules
from arsandbox.policies.model import Policy
from arsandbox.sandbox.candidate import Candidate, from_commit, from_patch, from_worktree, refusals
from arsandbox.sandbox.errors import UsageError
from arsandbox.sandbox.repository import Repository
from arsandbox.sandbox.workspace.upper import remove_tree
from arsandbox_fixtures.waiting import Within

FILES = {"train.py": "a\n", "src/model.py": "m\n", "src/deep/x.py": "x\n", "prepare.py": "p\n", "run.sh": "#!/bin/sh\n"}
RULES = EditRules(editable=("train.py", "src", "*.txt"), protected=("prepare.py", "src/eval.py"))


@pytest.fixture
def repo(make_repo):
    return make_repo({**FILES, ".gitignore": "*.log\n/build/\n"})


def freeze(repo, rules: EditRules = RULES) -> tuple[Repository, Candidate]:
    repository = Repository.open(repo.path)
    return repository, from_worktree(repository, repository.head(), rules)


def changed(repo, rules: EditRules = RULES) -> dict[str, tuple[str, bytes] | None]:
    """path -> (mode, content) of what the candidate changes, None where it deletes."""
    repository, found = freeze(repo, rules)
    objects = repository.objects
    rows: dict[str, tuple[str, bytes] | None] = {}
    for change in objects.changes(found.base, found.commit):
        new = change.new
        rows[change.path] = None if new is None else (new.mode, objects.git("cat-file", "blob", new.blob))
    assert len(found.patch.files) == len(rows)
    assert from_commit(objects, found.base, found.commit) == Candidate(
        found.base, found.commit, found.tree, found.patch, found.diff
    )
    return rows


def refused(repo, rules: EditRules = RULES, policy: Policy | None = None) -> list[str]:
    repository, found = freeze(repo, rules)
    return refusals(found, repository.objects, rules, policy or Policy())


def test_a_large_file_of_the_base_is_no_part_of_a_candidate_as_long_as_nobody_changes_it(repo) -> None:
    with (repo.path / "weights.bin").open("wb") as file:
        file.truncate(65 * 1024**2)
    repo.commit()
    repo.write({"train.py": "b\n"})
    assert changed(repo) == {"train.py": ("100644", b"b\n")}
    for spoil in (lambda file: file.chmod(0o755), lambda file: file.write_bytes(b"1" + bytes(65 * 1024**2 - 1))):
        spoil(repo.path / "weights.bin")
        with pytest.raises(UsageError, match=r"weights\.bin: is larger than 64 MiB and is not what the base has"):
            freeze(repo)
        (repo.path / "weights.bin").chmod(0o644)


def test_an_untouched_tree_is_the_base(repo) -> None:
    for path in repo.path.rglob("*.py"):
        os.utime(path, (1, 1))
    _, found = freeze(repo)
    assert found.is_base and found.commit == found.base and found.diff == b"" and found.left_out == ()
    assert refused(repo) == []


def test_edits_modes_and_deletions(repo) -> None:
    repo.write({"train.py": "b\n"})
    (repo.path / "run.sh").chmod(0o755)
    (repo.path / "src/deep/x.py").unlink()
    assert changed(repo) == {
        "train.py": ("100644", b"b\n"), "run.sh": ("100755", b"#!/bin/sh\n"), "src/deep/x.py": None,
    }  # fmt: skip
    _, found = freeze(repo)
    assert (found.patch.insertions, found.patch.deletions) == (1, 2)
    assert refused(repo) == ["run.sh: is not among the editable paths (train.py, src, *.txt)"]


def test_the_index_is_not_consulted(repo) -> None:
    repo.write({"train.py": "staged\n"})
    repo.git("add", "train.py")
    repo.git("update-index", "--assume-unchanged", "src/model.py")
    repo.write({"train.py": "worktree\n", "src/model.py": "hidden edit\n"})
    assert changed(repo) == {"train.py": ("100644", b"worktree\n"), "src/model.py": ("100644", b"hidden edit\n")}


def test_untracked_files_count_where_they_are_editable_and_are_named_elsewhere(repo) -> None:
    repo.write(
        {"src/new.py": "n", "src/a/b/c.py": "c", "notes.txt": "t", "other.md": "o", "zdir/x": "x", "src/eval.py": "e",
         "x.log": "l", "src/y.log": "l", "build/x.txt": "b", "src/__pycache__/m.pyc": "p", "src/m.pyc": "p",
         "d/n.txt": ""}
    )  # fmt: skip
    assert set(changed(repo)) == {"src/new.py", "src/a/b/c.py", "notes.txt"}
    assert freeze(repo)[1].left_out == ("d", "other.md", "zdir")
    assert refused(repo) == []


def test_a_literally_editable_new_file_counts_even_when_it_is_ignored(repo) -> None:
    repo.write({"special.log": "s", "deep/in/side.py": "d"})
    rules = EditRules(editable=("special.log", "deep/in/side.py"), protected=())
    assert set(changed(repo, rules)) == {"special.log", "deep/in/side.py"}


def test_ignored_files_that_are_tracked_still_count(make_repo) -> None:
    repo = make_repo({"train.log": "a", ".gitignore": "*.log\n"})
    repo.write({"train.log": "b"})
    assert changed(repo) == {"train.log": ("100644", b"b")}


def test_left_out_is_bounded(repo) -> None:
    repo.write({f"other-{number:03d}": "" for number in range(50)})
    assert len(freeze(repo)[1].left_out) == 20


def test_a_file_replaced_by_a_symlink_is_a_symlink_and_refused(repo, tmp_path: Path) -> None:
    (repo.path / "train.py").unlink()
    (repo.path / "train.py").symlink_to("/etc/passwd")
    assert changed(repo) == {"train.py": ("120000", b"/etc/passwd")}
    (line,) = refused(repo)
    assert "symlink" in line
    assert b"root:" not in freeze(repo)[1].diff


@pytest.mark.parametrize("target", ["absolute", "relative", "loop"])
def test_a_directory_replaced_by_a_symlink_is_not_entered(target: str, repo, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    (secret / "deep").mkdir(parents=True)
    (secret / "model.py").write_text("TOP SECRET")
    (secret / "deep" / "x.py").write_text("TOP SECRET")
    (secret / "more.py").write_text("TOP SECRET")
    (repo.path / "src").rename(tmp_path / "away")
    link = {"absolute": str(secret), "relative": "../secret", "loop": "src"}[target]
    (repo.path / "src").symlink_to(link)
    rows = changed(repo)
    assert rows["src/model.py"] is None and rows["src/deep/x.py"] is None
    assert rows.get("src", ("120000", b""))[0] == "120000"  # type: ignore[index]
    assert b"SECRET" not in freeze(repo)[1].diff


def test_a_new_symlink_below_an_editable_directory_is_refused_and_not_followed(repo, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key.py").write_text("SECRET")
    (repo.path / "src" / "link.py").symlink_to(tmp_path / "secret" / "key.py")
    (repo.path / "src" / "folder").symlink_to(tmp_path / "secret")
    assert b"SECRET" not in freeze(repo)[1].diff
    assert "src/folder/key.py" not in changed(repo)
    assert any("src/link.py: is a symlink" in line for line in refused(repo))


@pytest.mark.parametrize("place", ["train.py", "src/new.py", ".gitignore"])
@pytest.mark.parametrize("kind", ["fifo", "socket", "directory"])
def test_what_is_no_file_does_not_block_and_is_not_read(place: str, kind: str, repo, within: Within) -> None:
    path = repo.path / place
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener, within(10):
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "socket":
            here = os.getcwd()
            os.chdir(path.parent)
            listener.bind(path.name)
            os.chdir(here)
        else:
            path.mkdir()
        rows = changed(repo)
    assert rows == ({} if place == "src/new.py" else {place: None})


def test_a_file_and_a_directory_change_places(repo) -> None:
    (repo.path / "train.py").unlink()
    repo.write({"train.py/inner.py": "i"})
    for path in ("src/deep/x.py",):
        (repo.path / path).unlink()
    (repo.path / "src/deep").rmdir()
    repo.write({"src/deep": "file"})
    assert changed(repo) == {
        "train.py": None, "train.py/inner.py": ("100644", b"i"), "src/deep/x.py": None, "src/deep": ("100644", b"file"),
    }  # fmt: skip


def test_a_huge_file_is_refused_by_its_size(repo, within: Within) -> None:
    with open(repo.path / "train.py", "wb") as file:
        file.truncate(2**40)
    with within(5), pytest.raises(UsageError, match=r"train\.py: is larger than 64 MiB"):
        freeze(repo)


def test_line_endings_and_filters_are_left_alone(make_repo, tmp_path: Path) -> None:
    repo = make_repo({".gitattributes": "* text=auto eol=crlf\n*.py filter=lfs ident\n", "train.py": "a\nb\n"})
    repo.git("config", "core.autocrlf", "true")
    assert changed(repo) == {}
    repo.write({"train.py": b"a\r\n$Id: x$\r\nb\n"})
    assert changed(repo) == {"train.py": ("100644", b"a\r\n$Id: x$\r\nb\n")}


@pytest.mark.parametrize("name", ["new\nline.py", os.fsdecode(b"\xff.py"), "\x1b[2J.py", "\u202egpj.py", "e\u0301.py"])
def test_strange_new_names_are_frozen_as_they_are_and_refused_in_plain_words(name: str, repo) -> None:
    repo.write({f"src/{name}": "x"})
    assert changed(repo) == {f"src/{name}": ("100644", b"x")}
    (line,) = refused(repo)
    assert line.isprintable() and line.isascii()
    freeze(repo)[1].patch.model_dump_json()


@pytest.mark.parametrize(
    "pattern",
    ["!", "\\", "a\\", "/", "[", "**", "*a" * 60 + "b", "(?i", "\udcff", "{", "\0"],
    ids=lambda p: ascii(p)[:12],
)
def test_a_hostile_gitignore_neither_breaks_nor_blocks(pattern: str, repo, within: Within) -> None:
    """The working tree's .gitignore is the candidate's word."""
    repo.write({"src/" + "a" * 200: "x", "train.py": "b\n", ".git/info/exclude": ""})
    (repo.path / ".gitignore").write_bytes(os.fsencode(pattern) + b"\n")
    with within(4):
        try:
            _, found = freeze(repo)
        except UsageError:
            return
    assert "train.py" in found.patch.files


def test_nested_repositories_and_git_folders_are_not_entered(repo) -> None:
    repo.write({"src/sub/.git/config": "evil", "src/.git/HEAD": "x", "src/sub/code.py": "c"})
    assert set(changed(repo, EditRules(editable=("src", "**"), protected=()))) == {"src/sub/code.py"}


def test_a_very_deep_tree_ends(repo, within: Within) -> None:
    directory = os.open(repo.path / "src", os.O_RDONLY)
    for _ in range(2000):
        os.mkdir("d", dir_fd=directory)
        inner = os.open("d", os.O_RDONLY, dir_fd=directory)
        os.close(directory)
        directory = inner
    os.close(directory)
    with within(10):
        assert freeze(repo)[1].is_base
    remove_tree(str(repo.path / "src"))


def test_many_untracked_files_do_not_take_long(repo, within: Within) -> None:
    (repo.path / "src" / "many").mkdir()
    for number in range(5000):
        (repo.path / "src" / "many" / f"{number}.log").touch()
    with within(10):
        assert freeze(repo)[1].is_base


def test_limits_of_the_policy_are_refusals(repo) -> None:
    repo.write({"train.py": "b\n" * 500, "src/model.py": "n\n"})
    assert refused(repo) == []
    assert any("2 files" in line for line in refused(repo, policy=Policy(patch_files=1)))
    assert any("bytes" in line for line in refused(repo, policy=Policy(patch_bytes=100)))


def test_a_binary_file_is_refused_and_words_about_one_are_not(repo) -> None:
    repo.write({"train.py": b"\0\1\2"})
    assert any("binary" in line for line in refused(repo))
    repo.write({"train.py": "# a GIT binary patch is what git calls it\n"})
    assert refused(repo) == []


def test_a_submodule_is_refused(repo) -> None:
    base = repo.git("rev-parse", "HEAD")
    repo.git("update-index", "--add", "--cacheinfo", f"160000,{base},src/lib")
    commit = repo.git("commit-tree", repo.git("write-tree"), "-p", base, "-m", "x")
    repository = Repository.open(repo.path)
    found = from_commit(repository.objects, base, commit)
    assert refusals(found, repository.objects, RULES, Policy()) == [
        "src/lib: is a submodule; only regular files may be edited"
    ]


def test_patches_from_files(repo, tmp_path: Path, within: Within) -> None:
    repo.write({"train.py": "b\n"})
    repository, found = freeze(repo)
    patch = tmp_path / "edit.patch"
    patch.write_bytes(found.diff)
    same = from_patch(repository.objects, found.base, patch)
    assert (same.tree, same.patch) == (found.tree, found.patch)
    patch.write_bytes(b" \n\n")
    with pytest.raises(UsageError, match="is empty"):
        from_patch(repository.objects, found.base, patch)
    with open(patch, "wb") as file:
        file.truncate(2**40)
    with within(5), pytest.raises(UsageError, match="64 MiB"):
        from_patch(repository.objects, found.base, patch)
    for bad in (tmp_path / "none", tmp_path):
        with pytest.raises(UsageError, match="--patch"):
            from_patch(repository.objects, found.base, bad)

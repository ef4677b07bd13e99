"""The user's repository: read without trusting it; a config that runs commands is refused by the key's name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from arsandbox.policies.edits import EditRules
from arsandbox.sandbox import candidate as candidates
from arsandbox.sandbox import promotion
from arsandbox.sandbox.errors import ArsandboxError, RefusedError, RepositoryError, UsageError
from arsandbox.sandbox.record import Record
from arsandbox.sandbox.repository import Repository
from arsandbox_fixtures.waiting import Within

RULES = EditRules(editable=("train.py",), protected=())


@pytest.fixture
def repo(make_repo):
    return make_repo({"train.py": "a\n", ".gitattributes": "*.py filter=evil diff=evil merge=evil\n"})


def append_config(repo, text: str) -> None:
    with (repo.path / ".git" / "config").open("a") as file:
        file.write(text)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("core.fsmonitor", "/tmp/evil"),
        ("core.fsmonitor", ".git/evil.sh"),
        ("core.hooksPath", "evil"),
        ("core.sshCommand", "evil"),
        ("core.gitProxy", "evil"),
        ("core.askPass", "evil"),
        ("core.pager", "evil"),
        ("core.editor", "evil"),
        ("core.alternateRefsCommand", "evil"),
        ("filter.x.clean", "evil"),
        ("filter.x.smudge", "evil"),
        ("filter.x.process", "evil"),
        ("filter.a.b c.clean", "evil"),
        ("diff.external", "evil"),
        ("diff.x.command", "evil"),
        ("diff.x.textconv", "evil"),
        ("merge.x.driver", "evil"),
        ("credential.helper", "!evil"),
        ("credential.https://x.helper", "!evil"),
        ("gpg.program", "evil"),
        ("gpg.ssh.program", "evil"),
        ("gpg.ssh.defaultKeyCommand", "evil"),
        ("uploadpack.packObjectsHook", "evil"),
        ("remote.origin.uploadpack", "evil"),
        ("remote.origin.receivepack", "evil"),
        ("remote.origin.vcs", "evil"),
        ("alias.status", "!evil"),
        ("pager.log", "evil"),
        ("sequence.editor", "evil"),
        ("submodule.x.update", "!evil"),
        ("trailer.x.command", "evil"),
        ("trailer.x.cmd", "evil"),
        ("difftool.x.cmd", "evil"),
        ("include.path", "/tmp/evil"),
        ("includeIf.gitdir:/.path", "/tmp/evil"),
    ],
)
def test_a_config_that_runs_commands_is_refused_by_its_key(key: str, value: str, repo) -> None:
    repo.git("config", key, value)
    with pytest.raises(RefusedError) as caught:
        Repository.open(repo.path)
    named = "include.path" if key.startswith("include") else key
    assert named.lower() in caught.value.message.lower()
    assert named.lower() in caught.value.hint.lower() and str(repo.path / ".git" / "config") in caught.value.message


@pytest.mark.parametrize(
    "text",
    [
        "[core] fsmonitor = /tmp/evil\n",
        "[core] fsmonitor = /tmp/evil # true\n",
        "[CORE]\n\tFsMonitor=/tmp/evil\n",
        '[filter\t"x"]\n\tclean = evil\n',
        '[filter   "x"]\n\tclean = evil\n',
        "[filter.x]\n\tclean = evil\n",
        '[filter "x"] clean = evil\n',
        '[filter "a]b"]\n\tclean = evil\n',
        '[filter "a\\"b"]\n\tclean = evil\n',
        "[core]\n\tfsmonitor = /tmp/ev\\\nil\n",
        '[core]\n\tfsmonitor = "/tmp/evil"\n',
        "[core]\n\tfsmonitor = true\n\tfsmonitor = /tmp/evil\n",
        "[core]\n\tfsmonitor = /tmp/evil\n[core]\n\tbare = false\n",
        "[include]\n\tpath = other\n",
        "[Include] path = other\n",
        '[includeIf "onbranch:main"]\n\tpath = other\n',
        "[core]\r\n\tfsmonitor = /tmp/evil\r\n",
        "# comment\n ; more\n[core] ; words\n\tfsmonitor = /tmp/evil\n",
    ],
)
def test_no_way_of_writing_it_gets_past(text: str, repo) -> None:
    """Each text means a command to git itself (checked), however odd it is."""
    append_config(repo, "\n" + text)
    (repo.path / ".git" / "other").write_text("[core]\n\tfsmonitor = /tmp/evil\n")
    seen = repo.git("config", "--list", "--includes", check=False)
    if "evil" not in seen and "filter" not in seen:
        pytest.fail(f"the test is wrong: git does not read a command from it: {seen}")
    with pytest.raises(ArsandboxError):
        Repository.open(repo.path)


def test_the_worktree_s_own_config_is_looked_at_too(repo) -> None:
    repo.git("config", "extensions.worktreeConfig", "true")
    (repo.path / ".git" / "config.worktree").write_text("[core]\n\tfsmonitor = /tmp/evil\n")
    with pytest.raises(RefusedError, match=r"core\.fsmonitor"):
        Repository.open(repo.path)


@pytest.mark.parametrize("value", ["true", "false", ""])
def test_harmless_values_pass(value: str, repo) -> None:
    repo.git("config", "core.fsmonitor", value)
    repo.git("config", "user.name", "someone")
    repo.git("config", "remote.origin.url", "https://example.org/x")
    assert Repository.open(repo.path).head() == repo.git("rev-parse", "HEAD")


@pytest.mark.parametrize("name", ["config", "included"])
def test_a_fifo_in_place_of_a_config_does_not_block(name: str, repo, within: Within) -> None:
    if name == "config":
        (repo.path / ".git" / "config").unlink()
    else:
        append_config(repo, "[include]\n\tpath = included\n")
    os.mkfifo(repo.path / ".git" / name)
    with within(2), pytest.raises(ArsandboxError):
        Repository.open(repo.path)


@pytest.mark.parametrize("text", [b"[core", b"\xff\xfe\0", b"[core]\nx", b"key = 1\n", b"[a]\n\t= 1\n", b"[" * 10_000])
def test_a_damaged_config_is_never_an_internal_error(text: bytes, repo, within: Within) -> None:
    (repo.path / ".git" / "config").write_bytes(text)
    with within(20):
        try:
            Repository.open(repo.path).head()
        except ArsandboxError:
            pass


def plant(repo, marker: Path) -> None:
    """Every place from which git could be made to run something without a refused config key."""
    script = f"#!/bin/sh\ntouch {marker}\n"
    hooks = repo.path / ".git" / "hooks"
    hooks.mkdir(exist_ok=True)
    for name in (
        "pre-commit", "post-commit", "prepare-commit-msg", "commit-msg", "post-checkout", "reference-transaction",
        "update", "pre-receive", "post-receive", "post-update", "post-index-change", "fsmonitor-watchman",
        "pre-auto-gc", "post-rewrite", "pre-push", "applypatch-msg", "pre-applypatch", "post-applypatch", "post-merge",
    ):  # fmt: skip
        (hooks / name).write_text(script)
        (hooks / name).chmod(0o755)


def test_a_planted_hook_is_never_run_by_any_operation(repo, tmp_path: Path, make_record: Callable[..., Record]) -> None:
    marker = tmp_path / "marker"
    base = repo.git("rev-parse", "HEAD")
    plant(repo, marker)
    repository = Repository.open(repo.path)
    assert repository.head() == base and repository.resolve("HEAD") == base
    repository.current_branch(), repository.checked_out_branches(), repository.branch_tip("main")
    repo.write({"train.py": "b\n"})
    found = candidates.from_worktree(repository, base, RULES)
    candidates.from_commit(repository.objects, base, found.commit)
    patch = tmp_path / "p"
    patch.write_bytes(found.diff)
    assert candidates.from_patch(repository.objects, base, patch).tree == found.tree
    for _ in range(2):
        prepared = promotion.prepare(
            repository,
            make_record(),
            candidate=found.commit,
            branch="arsandbox/x",
            parent=base,
            old=repository.branch_tip("arsandbox/x"),
            ledger_head="0" * 64,
        )
        assert promotion.publish(repository, prepared)
    assert not marker.exists()
    repo.git("commit", "--allow-empty", "-m", "x", check=False)
    assert marker.exists(), "the test is wrong: the planted hooks cannot run"


def test_a_missing_object_is_never_fetched_by_a_command_of_the_config(repo, tmp_path: Path) -> None:
    """A partial clone fetches what is missing; with `ext::` that is a command of the config's choosing."""
    marker = tmp_path / "marker"
    missing = "1" * 40
    append_config(
        repo,
        f'[extensions]\n\tpartialClone = evil\n[protocol "ext"]\n\tallow = always\n'
        f'[remote "evil"]\n\tpromisor = true\n\tpartialclonefilter = blob:none\n\turl = "ext::sh -c touch% {marker}"\n',
    )
    repo.git("config", "core.repositoryFormatVersion", "1")
    (repo.path / ".git" / "refs" / "heads" / "main").write_text(missing + "\n")
    try:
        repository = Repository.open(repo.path)
        for use in (repository.head, lambda: repository.resolve("HEAD"), lambda: repository.branch_tip("main")):
            try:
                use()
            except ArsandboxError:
                pass
        found = repository.objects.read(f"{missing}:x")
        assert found is None
    except ArsandboxError:
        pass
    assert not marker.exists()
    repo.git("cat-file", "-p", missing, check=False)
    assert marker.exists(), "the test is wrong: git would not run the command"


@pytest.mark.parametrize(
    "head", [b"", b"garbage", b"ref: refs/heads/\xff", b"1" * 40, b"ref: refs/heads/main\0", b"ref: "]
)
def test_a_damaged_head_is_an_error_of_ours(head: bytes, repo) -> None:
    (repo.path / ".git" / "HEAD").write_bytes(head + b"\n")
    with pytest.raises(ArsandboxError):
        Repository.open(repo.path).head()


def test_a_branch_with_garbage_or_a_missing_commit_is_an_error_of_ours(repo) -> None:
    for text in ("garbage\n", "1" * 40 + "\n", ""):
        (repo.path / ".git" / "refs" / "heads" / "main").write_text(text)
        with pytest.raises(ArsandboxError):
            Repository.open(repo.path).head()


def test_what_is_no_repository_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such directory"):
        Repository.open(tmp_path / "none")
    (tmp_path / "plain").mkdir()
    with pytest.raises(UsageError) as caught:
        Repository.open(tmp_path / "plain")
    assert "git init" in caught.value.hint


def test_an_unborn_head_and_a_bare_repository_are_usage_errors(make_repo) -> None:
    unborn = make_repo(name="unborn")
    repository = Repository.open(unborn.path)
    with pytest.raises(UsageError, match="no commit"):
        repository.head()
    with pytest.raises(UsageError):
        repository.resolve("HEAD")
    bare = make_repo({"x": "y"}, name="bare")
    bare.git("clone", "-q", "--bare", ".", "../really-bare")
    with pytest.raises(UsageError, match="bare"):
        Repository.open(bare.path.parent / "really-bare")


def test_a_repository_without_objects_is_a_repository_error(repo) -> None:
    shutil.rmtree(repo.path / ".git" / "objects")
    with pytest.raises((RepositoryError, UsageError)):
        Repository.open(repo.path)


def test_branches_commits_and_ancestry(repo) -> None:
    first = repo.git("rev-parse", "HEAD")
    second = repo.commit("second")
    repo.git("branch", "other", first)
    repo.git("tag", "-a", "v1", "-m", "x", first)
    repository = Repository.open(repo.path / ".git" / "..")
    assert repository.current_branch() == "main" and repository.checked_out_branches() == {"main"}
    assert repository.branch_tip("other") == first and repository.branch_tip("none") is None
    assert repository.resolve("v1") == first and repository.resolve("HEAD~1") == first
    assert repository.resolve(second[:10]) == second
    assert repository.is_ancestor(first, second) and not repository.is_ancestor(second, first)
    assert repository.is_ancestor(first, first)


@pytest.mark.parametrize(
    "revision", ["", "-x", "--all", "none", "HEAD:train.py", "HEAD^{tree}", "1" * 40, "HEAD HEAD", "main..main", "\n"]
)
def test_what_names_no_commit_is_a_usage_error(revision: str, repo) -> None:
    with pytest.raises(UsageError):
        Repository.open(repo.path).resolve(revision)


def test_a_detached_head_works(repo) -> None:
    repo.git("checkout", "-q", "--detach")
    repository = Repository.open(repo.path)
    assert repository.current_branch() == "HEAD" and repository.checked_out_branches() == set()
    assert repository.head() == repo.git("rev-parse", "HEAD")


def test_linked_worktrees(repo, tmp_path: Path) -> None:
    repo.git("branch", "side")
    repo.git("worktree", "add", "-q", str(tmp_path / "linked"), "side")
    repo.commit("main moves on")
    main, linked = Repository.open(repo.path), Repository.open(tmp_path / "linked")
    assert main.checked_out_branches() == linked.checked_out_branches() == {"main", "side"}
    assert linked.worktree == tmp_path / "linked" and linked.current_branch() == "side"
    assert linked.state == main.state
    assert linked.head() == repo.git("rev-parse", "side") != main.head()
    (tmp_path / "linked" / "train.py").write_text("b\n")
    found = candidates.from_worktree(linked, linked.head(), RULES)
    assert found.patch.files == ("train.py",)


def test_head_means_this_worktree_s_head(repo, tmp_path: Path) -> None:
    repo.git("branch", "side")
    repo.git("worktree", "add", "-q", str(tmp_path / "linked"), "side")
    repo.commit("main moves on")
    linked = Repository.open(tmp_path / "linked")
    assert linked.resolve("HEAD") == linked.head()


def test_a_head_that_is_a_symlink_as_of_old_counts_as_checked_out(repo) -> None:
    head = repo.path / ".git" / "HEAD"
    head.unlink()
    head.symlink_to("refs/heads/main")
    assert repo.git("symbolic-ref", "--short", "HEAD") == "main"
    assert "main" in Repository.open(repo.path).checked_out_branches()


def test_a_fifo_among_the_worktrees_does_not_block(repo, within: Within) -> None:
    (repo.path / ".git" / "worktrees" / "w").mkdir(parents=True)
    os.mkfifo(repo.path / ".git" / "worktrees" / "w" / "HEAD")
    with within(2):
        try:
            assert "main" in Repository.open(repo.path).checked_out_branches()
        except ArsandboxError:
            pass


@pytest.mark.parametrize("name", ["re po", 're"po', "re\\po", "#x", "-x", "é", "re:po", "re\npo"])
def test_repositories_in_oddly_named_directories(name: str, make_repo) -> None:
    repo = make_repo({"train.py": "a\n"}, name=name)
    repository = Repository.open(repo.path)
    base = repository.head()
    assert repository.objects.read(f"{base}:train.py") == b"a\n"


def test_a_shallow_clone_works(repo, tmp_path: Path) -> None:
    repo.commit("second")
    repo.git("clone", "-q", "--depth", "1", f"file://{repo.path}", str(tmp_path / "shallow"))
    repository = Repository.open(tmp_path / "shallow")
    base = repository.head()
    assert repository.objects.read(f"{base}:train.py") == b"a\n" and repository.is_ancestor(base, base)


def test_a_sha256_repository_works(make_repo) -> None:
    repo = make_repo({"train.py": "a\n"}, object_format="sha256")
    repository = Repository.open(repo.path)
    base = repository.head()
    assert base == repo.git("rev-parse", "HEAD")
    (repo.path / "train.py").write_text("b\n")
    assert candidates.from_worktree(repository, base, RULES).patch.files == ("train.py",)

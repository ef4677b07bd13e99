"""The private object store: patches, edits with odd names, and commits that depend on nothing else."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arsandbox.sandbox.errors import RepositoryError, UsageError
from arsandbox.sandbox.object_reader import ObjectReader, patch_digests
from arsandbox.sandbox.objects import ObjectStore, TreeEntry

FILES = {"train.py": "a = 1\nb = 2\nc = 3\n", "data/x.txt": "x\n", "data/y.txt": "y\n", "run.sh": "#!/bin/sh\n"}
ODD = ['q"uote', "new\nline", "back\\slash", "tab\there", "sp ace", "é", os.fsdecode(b"\xff\xfe"), "-dash", ":colon",
       "a\\nb", "'", "*", "?[x]", "#x", "\x1b[2J", "trailing ", "\u202e", "$(id)", "{a,b}", '"']  # fmt: skip


@pytest.fixture
def repo(make_repo):
    return make_repo(FILES)


@pytest.fixture
def store(repo, tmp_path: Path) -> ObjectStore:
    return open_store(repo, tmp_path / "store")


def open_store(repo, directory: Path) -> ObjectStore:
    return ObjectStore.open(directory, alternate=repo.path / ".git" / "objects", object_format="sha1", shallow=None)


def listing(store: ObjectStore, commit: str) -> dict[str, tuple[str, bytes]]:
    tree = store.tree_of(commit)
    return {e.path: (e.mode, store.git("cat-file", "blob", e.blob)) for e in store.entries(tree)}


BASE = {name: ("100644", text.encode()) for name, text in FILES.items()}


def diff(repo, *arguments: str) -> bytes:
    return subprocess.run(
        ["git", "-C", repo.path, "diff", *arguments], capture_output=True, check=True, env={**os.environ}
    ).stdout


def test_the_user_s_repository_gets_not_a_byte(repo, store: ObjectStore) -> None:
    def everything() -> set[tuple[str, int]]:
        return {(str(p), p.stat().st_mtime_ns) for p in (repo.path / ".git").rglob("*")}

    before = everything()
    base = repo.git("rev-parse", "HEAD")
    store.commit_edit(base, [("train.py", b"new", "100644")])
    assert everything() == before
    assert list((store.directory / "hooks").glob("*")) == []
    assert not (store.directory / "hooks").exists()


def test_opening_again_keeps_the_store_and_follows_a_moved_repository(repo, tmp_path: Path) -> None:
    first = open_store(repo, tmp_path / "store")
    base = repo.git("rev-parse", "HEAD")
    commit = first.commit_edit(base, [("train.py", b"new", "100644")])
    moved = tmp_path / "moved"
    repo.path.rename(moved)
    repo.path = moved
    again = open_store(repo, tmp_path / "store")
    assert listing(again, commit)["train.py"] == ("100644", b"new")


def test_an_object_that_is_missing_is_a_repository_error(store: ObjectStore) -> None:
    with store.blobs() as blobs, pytest.raises(RepositoryError, match="missing"):
        blobs.read("1" * 40)
    with pytest.raises(RepositoryError):
        store.tree_of("1" * 40)
    with pytest.raises(RepositoryError):
        store.tree_of("--help")
    assert store.read("HEAD:none") is None


@pytest.mark.parametrize("patch", [b"garbage", b"\0\0\0", b"diff --git a/x b/x\n", b"--- a/x\n+++ b/x\n", b"\xff" * 99])
def test_a_patch_that_holds_nothing_is_a_usage_error(patch: bytes, repo, store: ObjectStore) -> None:
    with pytest.raises(UsageError, match="holds no change"):
        store.apply_patch(repo.git("rev-parse", "HEAD"), patch, name="p")


def edit_patch(old: str, new: str, path: str = "train.py") -> bytes:
    return f"--- a/{path}\n+++ b/{path}\n@@ -1,3 +1,3 @@\n-{old}\n+{new}\n b = 2\n c = 3\n".encode()


def test_a_patch_is_applied_to_the_base_and_nothing_else_changes(repo, store: ObjectStore) -> None:
    base = repo.git("rev-parse", "HEAD")
    repo.write({"train.py": "the working tree does not matter", "data/x.txt": "nor this"})
    commit = store.apply_patch(base, edit_patch("a = 1", "a = 9"), name="p")
    assert listing(store, commit) == {**BASE, "train.py": ("100644", b"a = 9\nb = 2\nc = 3\n")}
    assert store.git("rev-parse", f"{commit}^").decode().strip() == base


def test_a_patch_that_does_not_apply_is_a_usage_error_that_names_the_file(repo, store: ObjectStore) -> None:
    with pytest.raises(UsageError) as caught:
        store.apply_patch(repo.git("rev-parse", "HEAD"), edit_patch("a = 7", "a = 9"), name="my.patch")
    assert "my.patch" in caught.value.message and "train.py" in caught.value.message
    assert "\n" not in caught.value.message


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A directory on a file system of its own, of 1 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], check=True)
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_full_disk_is_no_fault_of_the_patch(repo, small_disk: Path) -> None:
    small = open_store(repo, small_disk / "store")
    lines = "".join(f"+{hashlib.sha256(str(n).encode()).hexdigest()}\n" for n in range(40_000))
    patch = f"--- /dev/null\n+++ b/new.txt\n@@ -0,0 +1,40000 @@\n{lines}".encode()
    base = repo.git("rev-parse", "HEAD")
    with pytest.raises(RepositoryError, match="No space left"):
        small.apply_patch(base, patch, name="p")


def test_what_git_refuses_only_while_it_applies_is_a_usage_error(repo, store: ObjectStore) -> None:
    """It passes `git apply --check`: found by fuzzing."""
    patch = b"diff --git a/s b/s\nnew file mode 160000\n--- /dev/null\n+++ b/s\n@@ -0,0 +1 @@\n+no commit\n"
    with pytest.raises(UsageError, match="corrupt patch for submodule"):
        store.apply_patch(repo.git("rev-parse", "HEAD"), patch, name="p")


@pytest.mark.parametrize(
    "path",
    ["../x", "a/../../x", ".git/config", ".git/hooks/post-commit", "/etc/passwd", ".GIT/config", "a/.git/x", "./x",
     "a/./b", "a//b", ".."],
)  # fmt: skip
def test_a_patch_to_a_path_outside_the_tree_is_a_usage_error_and_writes_nothing(
    path: str, repo, store: ObjectStore, tmp_path: Path
) -> None:
    before = {p for p in tmp_path.rglob("*") if "objects/" not in str(p)}
    patch = f"diff --git a/{path} b/{path}\nnew file mode 100644\n--- /dev/null\n+++ b/{path}\n@@ -0,0 +1 @@\n+x\n"
    with pytest.raises(UsageError):
        store.apply_patch(repo.git("rev-parse", "HEAD"), patch.encode(), name="p")
    assert {p for p in tmp_path.rglob("*") if "objects/" not in str(p)} == before


def changed(repo, store: ObjectStore, *arguments: str) -> dict[str, tuple[str, bytes]]:
    """What our application of git's own diff of the working tree makes, after `git add -A`."""
    base = repo.git("rev-parse", "HEAD")
    repo.git("add", "-A")
    patch = diff(repo, "--cached", "--binary", *arguments)
    return listing(store, store.apply_patch(base, patch, name="p"))


def test_new_deleted_binary_empty_and_executable_files(repo, store: ObjectStore) -> None:
    repo.write({"new/deep/file.py": "new\n", "empty": "", "binary": bytes(range(256)), "no-newline": "x"})
    (repo.path / "data" / "x.txt").unlink()
    (repo.path / "run.sh").chmod(0o755)
    (repo.path / "link").symlink_to("/etc/passwd")
    found = changed(repo, store)
    assert found == {
        "train.py": BASE["train.py"],
        "data/y.txt": BASE["data/y.txt"],
        "run.sh": ("100755", FILES["run.sh"].encode()),
        "new/deep/file.py": ("100644", b"new\n"),
        "empty": ("100644", b""),
        "binary": ("100644", bytes(range(256))),
        "no-newline": ("100644", b"x"),
        "link": ("120000", b"/etc/passwd"),
    }


def test_a_rename_as_git_diff_writes_it_by_default(repo, store: ObjectStore) -> None:
    (repo.path / "train.py").rename(repo.path / "moved.py")
    found = changed(repo, store, "-M")
    assert found == {**{k: v for k, v in BASE.items() if k != "train.py"}, "moved.py": BASE["train.py"]}


def test_a_copy(repo, store: ObjectStore) -> None:
    repo.write({"copy.py": FILES["train.py"] + "d = 4\n"})
    found = changed(repo, store, "-C", "--find-copies-harder")
    assert found == {**BASE, "copy.py": ("100644", FILES["train.py"].encode() + b"d = 4\n")}


def test_a_file_that_becomes_a_directory(repo, store: ObjectStore) -> None:
    (repo.path / "train.py").unlink()
    repo.write({"train.py/inner.py": "x\n"})
    found = changed(repo, store)
    assert found == {**{k: v for k, v in BASE.items() if k != "train.py"}, "train.py/inner.py": ("100644", b"x\n")}


def test_a_directory_that_becomes_a_file(repo, store: ObjectStore) -> None:
    for name in ("x.txt", "y.txt"):
        (repo.path / "data" / name).unlink()
    (repo.path / "data").rmdir()
    repo.write({"data": "file now\n"})
    found = changed(repo, store)
    assert found == {"train.py": BASE["train.py"], "run.sh": BASE["run.sh"], "data": ("100644", b"file now\n")}


@pytest.mark.parametrize("name", ODD)
def test_a_patch_with_an_odd_name(name: str, repo, store: ObjectStore) -> None:
    repo.write({f"d/{name}": "one\n", name: "two\n"})
    assert changed(repo, store) == {**BASE, f"d/{name}": ("100644", b"one\n"), name: ("100644", b"two\n")}


@pytest.mark.parametrize("name", ODD)
def test_an_edit_with_an_odd_name(name: str, repo, store: ObjectStore) -> None:
    base = repo.git("rev-parse", "HEAD")
    blob = next(e.blob for e in store.entries(store.tree_of(base)) if e.path == "train.py")
    edits = [(name, b"one", "100644"), (f"d/{name}", TreeEntry("", "100755", blob), "100755")]
    commit = store.commit_edit(base, edits)
    wanted = {**BASE, name: ("100644", b"one"), f"d/{name}": ("100755", BASE["train.py"][1])}
    assert listing(store, commit) == wanted
    assert {change.path for change in store.changes(base, commit)} == {name, f"d/{name}"}
    back = store.commit_edit(commit, [(name, None, ""), (f"d/{name}", None, "")])
    assert store.tree_of(back) == store.tree_of(base)
    assert store.files_below(store.tree_of(commit), name) == [name]
    assert store.read(f"{commit}:{name}") == b"one"


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.binary(min_size=1, max_size=10)
        .map(lambda raw: raw.replace(b"\0", b"0").replace(b"/", b"_"))
        .filter(lambda raw: raw.lower() not in (b".", b"..", b".git")),
        st.binary(max_size=60),
        max_size=6,
    )
)
def test_any_names_and_contents_are_written_byte_for_byte(repo, store: ObjectStore, edits: dict[bytes, bytes]) -> None:
    base = repo.git("rev-parse", "HEAD")
    commit = store.commit_edit(base, [(os.fsdecode(n), c, "100644") for n, c in edits.items()])
    assert listing(store, commit) == {**BASE, **{os.fsdecode(n): ("100644", c) for n, c in edits.items()}}


def test_content_that_looks_like_commands_stays_content(repo, store: ObjectStore) -> None:
    evil = b"\nD train.py\nM 100644 inline x\ndata 1\ny\ndone\nrefs/arsandbox/candidate\n"
    base = repo.git("rev-parse", "HEAD")
    commit = store.commit_edit(base, [("train.py", evil, "100644"), ("b", b"", "100644")])
    assert listing(store, commit) == {**BASE, "train.py": ("100644", evil), "b": ("100644", b"")}


def test_the_same_edit_gives_the_same_commit_anywhere_and_any_time(repo, tmp_path: Path, monkeypatch) -> None:
    base = repo.git("rev-parse", "HEAD")
    edits = [("train.py", b"x", "100644"), ("data/x.txt", None, "")]
    first = open_store(repo, tmp_path / "one").commit_edit(base, edits)
    time.sleep(1.1)
    for name, value in {
        "TZ": "Asia/Tokyo",
        "GIT_AUTHOR_NAME": "eve",
        "GIT_COMMITTER_DATE": "2001-01-01",
        "LANG": "de",
    }.items():
        monkeypatch.setenv(name, value)
    assert open_store(repo, tmp_path / "two").commit_edit(base, edits) == first
    assert open_store(repo, tmp_path / "two").commit_edit(base, edits[::-1]) == first
    store = open_store(repo, tmp_path / "two")
    assert store.git("for-each-ref") == b""


def test_changes_and_counts_and_diff_agree(repo, store: ObjectStore) -> None:
    base = repo.git("rev-parse", "HEAD")
    commit = store.commit_edit(
        base, [("train.py", b"a = 1\nB\nc = 3\nd\n", "100755"), ("data", b"file", "100644"), ("bin", b"\0\1", "100644")]
    )
    found = {c.path: (c.old and c.old.mode, c.new and c.new.mode) for c in store.changes(base, commit)}
    assert found == {
        "train.py": ("100644", "100755"),
        "data/x.txt": ("100644", None),
        "data/y.txt": ("100644", None),
        "data": (None, "100644"),
        "bin": (None, "100644"),
    }
    assert store.line_counts(base, commit) == (3, 3)
    assert store.changes(base, base) == [] and store.unified_diff(base, base) == b""
    again = store.apply_patch(base, store.unified_diff(base, commit), name="p")
    assert store.tree_of(again) == store.tree_of(commit)


def test_repository_attributes_and_config_do_not_reach_the_diff(make_repo, tmp_path: Path) -> None:
    repo = make_repo({".gitattributes": "* diff=evil filter=evil -text\n", "train.py": "a\n"})
    marker = tmp_path / "ran"
    for key in ("diff.evil.command", "diff.evil.textconv", "filter.evil.clean", "filter.evil.smudge", "diff.external"):
        repo.git("config", key, f"touch {marker}; cat")
    store = open_store(repo, tmp_path / "store")
    base = repo.git("rev-parse", "HEAD")
    marker.unlink(missing_ok=True)
    commit = store.commit_edit(base, [("train.py", b"b\r\n", "100644")])
    assert b"+b\r\n" in store.unified_diff(base, commit)
    assert store.read(f"{commit}:train.py") == b"b\r\n"
    assert not marker.exists()


def test_replace_refs_do_not_change_what_is_read(repo, store: ObjectStore) -> None:
    base = repo.git("rev-parse", "HEAD")
    blob = repo.git("rev-parse", "HEAD:train.py")
    other = repo.git("hash-object", "-w", "--stdin", stdin=b"evil\n")
    repo.git("replace", blob, other)
    store.git("replace", blob, other)
    assert store.read(f"{base}:train.py") == FILES["train.py"].encode()
    with store.blobs() as blobs:
        assert blobs.read(blob) == FILES["train.py"].encode()


def test_patch_digests_are_those_of_the_patches_and_skip_what_cannot_be_read(store: ObjectStore, repo) -> None:
    base = repo.git("rev-parse", "HEAD")
    trap = b"binary \0 content\n" + b"1" * 40 + b" " + b"2" * 40 + b"\n"
    edits = [b"one\n", trap, b"1" * 40 + b" " + b"2" * 40 + b"\n", b"last\n"]
    trees = [store.tree_of(store.commit_edit(base, [("train.py", edit, "100644")])) for edit in edits]
    old = store.tree_of(base)
    lost_blob = repo.git("hash-object", "-w", "--stdin", stdin=b"lost\n")
    lost_tree = repo.git("mktree", stdin=f"100644 blob {lost_blob}\ttrain.py\n".encode())
    (repo.path / ".git" / "objects" / lost_blob[:2] / lost_blob[2:]).unlink()
    pairs = [(old, "3" * 40), (old, trees[0]), (old, lost_tree), ("4" * 40, old), (old, old)]
    pairs += [(old, tree) for tree in trees]
    found = patch_digests(store.directory, pairs)
    right = {(old, tree): hashlib.sha256(store.unified_diff(old, tree)).hexdigest() for tree in [*trees, old]}
    assert found == right
    assert patch_digests(store.directory, []) == {}


def test_an_object_reader_answers_for_every_kind_of_request(store: ObjectStore, repo) -> None:
    base = repo.git("rev-parse", "HEAD")
    with ObjectReader.open(store.directory) as reader:
        assert reader.find("1" * 40, "commit") is None
        assert reader.find(base, "blob") is None
        text = reader.find(base, "commit")
        assert text is not None and text.startswith(b"tree ")
        assert reader.find(base, "commit") == text

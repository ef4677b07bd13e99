"""Layers mounted as an overlay show the commit's tree, all of it and nothing else."""

from __future__ import annotations

import os
import random
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from arsandbox.sandbox.errors import ArsandboxError, RepositoryError, StateError
from arsandbox.sandbox.objects import ObjectStore
from arsandbox.sandbox.workspace.layers import Layers, LayerStore, is_below
from arsandbox.sandbox.workspace.overlay import overlay_options, space_of, unmount_below

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting an overlay needs root")

Tree = dict[str, tuple[str, bytes]]  # path -> (git mode, content)
ODD = ["a", "b", "c.py", "é", "n\nl", 'q"', "b\\s", os.fsdecode(b"\xff"), " x", "-d", "$(id)"]


@pytest.fixture
def repo(make_repo):
    return make_repo({"train.py": "a\n", "data/x": "x", "data/deep/y": "y", "eval/z": "z", "run.sh": "#!/bin/sh"})


@pytest.fixture
def objects(repo, tmp_path: Path) -> ObjectStore:
    return ObjectStore.open(
        tmp_path / "objects", alternate=repo.path / ".git/objects", object_format="sha1", shallow=None
    )


@pytest.fixture
def store(objects: ObjectStore, tmp_path: Path) -> LayerStore:
    return LayerStore(tmp_path / "layers", objects)


@contextmanager
def mounted(place: Path, layers: Layers) -> Iterator[Path]:
    """The layers as a sandbox sees them."""
    merged, upper, work = place / "merged", place / "upper", place / "work"
    for directory in (merged, upper, work):
        directory.mkdir(parents=True)
    options = overlay_options(layers.paths, upper, work)
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(merged)], check=True, capture_output=True)
    try:
        yield merged
    finally:
        unmount_below(place)
        subprocess.run(["rm", "-rf", str(place)], check=True)


def shown(place: Path, layers: Layers) -> tuple[Tree, set[str]]:
    """(files and symlinks, directories) that the layers show; checks the modes of everything."""
    found: Tree = {}
    directories = set()
    with mounted(place, layers) as merged:
        for directory, below, names in os.walk(merged):
            for name in [*below, *names]:
                path = Path(directory, name)
                key, mode = str(path.relative_to(merged)), path.lstat().st_mode
                if stat.S_ISLNK(mode):
                    found[key] = ("120000", os.fsencode(os.readlink(path)))
                elif stat.S_ISDIR(mode):
                    directories.add(key)
                    assert stat.S_IMODE(mode) == 0o777, key
                else:
                    assert stat.S_ISREG(mode) and stat.S_IMODE(mode) in (0o666, 0o777), key
                    found[key] = ("100755" if mode & 0o100 else "100644", path.read_bytes())
    return found, directories


def of_git(repo, commit: str) -> Tree:
    """The tree by git's own words."""
    found: Tree = {}
    for row in repo.git("ls-tree", "-r", "-z", "--full-tree", commit).split("\0"):
        if row:
            head, _, path = row.partition("\t")
            mode, _, blob = head.split(" ")
            raw = subprocess.run(["git", "-C", repo.path, "cat-file", "blob", blob], capture_output=True, check=True)
            found[path] = (mode, raw.stdout)
    return found


def parents(tree: Tree) -> set[str]:
    return {"/".join(path.split("/")[:n]) for path in tree for n in range(1, path.count("/") + 1)}


def write_commit(repo, tree: Tree) -> str:
    """A commit of exactly `tree`, by an index of its own."""
    repo.git("read-tree", "--empty")
    rows = []
    for path, (mode, content) in tree.items():
        blob = repo.git("hash-object", "-w", "--stdin", stdin=content)
        rows.append(f"{mode} {blob}\t{path}\0")
    repo.git("update-index", "-z", "--index-info", stdin=os.fsencode("".join(rows)))
    return repo.git("commit-tree", repo.git("write-tree"), "-m", "x")


def random_tree(generator: random.Random) -> Tree:
    tree: Tree = {}
    for _ in range(generator.randint(1, 12)):
        path = "/".join(generator.choice(ODD) for _ in range(generator.randint(1, 3)))
        taken = path in parents(tree) or any(parent in tree for parent in parents({path: ("", b"")}))
        if not taken:
            tree[path] = (
                generator.choice(["100644", "100644", "100755", "120000"]),
                generator.choice([b"one", b"two\n", b"/etc/passwd", b"..", bytes(range(1, 256))]),
            )
    return {
        path: (mode, content[:60].replace(b"\0", b"") or b"x" if mode == "120000" else content)
        for path, (mode, content) in tree.items()
    }


def mutated(tree: Tree, generator: random.Random) -> Tree:
    """A tree near `tree`: files deleted, changed, turned into directories and back."""
    other = dict(random_tree(generator))
    for path, entry in tree.items():
        clash = path in parents(other) or path in other or any(p in other for p in parents({path: entry}))
        if not clash and generator.random() < 0.6:
            other[path] = entry
    return other


@pytest.mark.parametrize("seed", range(25))
def test_full_and_delta_layers_show_exactly_the_tree(
    seed: int, repo, objects: ObjectStore, store: LayerStore, tmp_path: Path
) -> None:
    generator = random.Random(seed)
    first = random_tree(generator)
    trees = [first, mutated(first, generator), mutated(first, generator)]
    for number, tree in enumerate(trees):
        commit = write_commit(repo, tree)
        assert of_git(repo, commit) == tree  # the test's own tools work
        layers = store.layers(commit)
        assert len(layers.paths) == 1 if number == 0 else len(layers.paths) <= 2
        found, _ = shown(tmp_path / "m", layers)
        assert found == tree


def test_a_delta_leaves_no_empty_directory_that_a_full_layer_would_not_have(
    repo, objects: ObjectStore, store: LayerStore, tmp_path: Path
) -> None:
    """What a run sees may not depend on which layers happened to be cached."""
    base = repo.git("rev-parse", "HEAD")
    commit = objects.commit_edit(base, [("data/x", None, ""), ("data/deep/y", None, ""), ("eval/z", None, "")])
    alone = LayerStore(tmp_path / "other-layers", objects)
    full = shown(tmp_path / "m", alone.layers(commit))
    store.layers(base)
    assert shown(tmp_path / "m", store.layers(commit)) == full == ({**full[0]}, set())


def test_a_second_call_builds_nothing(
    repo, objects: ObjectStore, store: LayerStore, tmp_path: Path, monkeypatch
) -> None:
    base = repo.git("rev-parse", "HEAD")
    commit = objects.commit_edit(base, [("train.py", b"new", "100644")])
    first, second = store.layers(base), store.layers(commit)
    only, hiding = store.only(base, ["eval"]), store.hiding(["train.py"])
    assert len(first.paths) == 1 and second.paths[1:] == first.paths
    monkeypatch.setattr(LayerStore, "_build", lambda *rest: pytest.fail("built again"))
    again = LayerStore(tmp_path / "layers", objects)
    assert (again.layers(base), again.layers(commit)) == (first, second)
    assert (again.only(base, ["eval"]), again.hiding(["train.py"])) == (only, hiding)
    same_tree = objects.commit_edit(commit, [("train.py", b"a\n", "100644")])
    assert again.layers(same_tree) == first


def test_a_lost_or_damaged_index_costs_a_rebuild_alone(
    repo, objects: ObjectStore, store: LayerStore, tmp_path: Path
) -> None:
    base = repo.git("rev-parse", "HEAD")
    store.layers(base)
    for text in ("", "{", "null", "[[1]]", "3", '[["x", 3]]'):
        (tmp_path / "layers" / "full.json").write_text(text)
        commit = objects.commit_edit(base, [("train.py", text.encode(), "100644")])
        assert shown(tmp_path / "m", store.layers(commit))[0]["train.py"] == ("100644", text.encode()), text


def test_paths_are_left_out_alone_and_hidden(repo, objects: ObjectStore, store: LayerStore, tmp_path: Path) -> None:
    base = repo.git("rev-parse", "HEAD")
    whole = of_git(repo, base)
    without = store.layers(base, without=["data", "eval/z"])
    found, directories = shown(tmp_path / "m", without)
    assert found == {"train.py": whole["train.py"], "run.sh": whole["run.sh"]} and directories == set()
    assert shown(tmp_path / "m", store.layers(base))[0] == whole  # another key
    assert shown(tmp_path / "m", store.layers(base, without=["dat", "eva", "train"]))[0] == whole  # no prefix of a name
    only = store.only(base, ["data/deep", "eval"])
    assert shown(tmp_path / "m", only)[0] == {path: whole[path] for path in ("data/deep/y", "eval/z")}
    assert store.only(base, ["none"]) == Layers(()) and store.hiding([]) == Layers(())
    stack = Layers((*store.hiding(["train.py", "data/deep/y"]).paths, *store.layers(base).paths))
    assert shown(tmp_path / "m", stack)[0] == {p: whole[p] for p in ("data/x", "eval/z", "run.sh")}
    both = Layers((*store.only(base, ["data", "eval/z"]).paths, *without.paths))
    assert shown(tmp_path / "m", both)[0] == whole


def test_held_out_paths_stay_out_of_deltas_too(repo, objects: ObjectStore, store: LayerStore, tmp_path: Path) -> None:
    base = repo.git("rev-parse", "HEAD")
    store.layers(base, without=["data"])
    commit = objects.commit_edit(base, [("data/x", b"secret", "100644"), ("data/new", b"secret", "100644"),
                                        ("train.py", b"new", "100644")])  # fmt: skip
    layers = store.layers(commit, without=["data"])
    assert len(layers.paths) == 2
    found, directories = shown(tmp_path / "m", layers)
    assert set(found) == {"train.py", "run.sh", "eval/z"} and directories == {"eval"}
    for path in layers.paths:
        assert not any(b"secret" in file.read_bytes() for file in path.rglob("*") if file.is_file())


@pytest.mark.parametrize("paths", [["data", "data/x"], ["data/x", "data"], ["train.py", "train.py"]])
def test_hiding_copes_with_paths_inside_and_equal_to_each_other(
    paths: list[str], repo, store: LayerStore, tmp_path: Path
) -> None:
    base = repo.git("rev-parse", "HEAD")
    stack = Layers((*store.hiding(paths).paths, *store.layers(base).paths))
    assert not any(is_below(path, paths) for path in shown(tmp_path / "m", stack)[0])


def test_an_interrupted_build_is_cleaned_and_never_taken(repo, store: LayerStore, tmp_path: Path) -> None:
    left = tmp_path / "layers" / "building-dead"
    (left / "root" / "data").mkdir(parents=True)
    (left / "root" / "data" / "half").write_text("x")
    found, _ = shown(tmp_path / "m", store.layers(repo.git("rev-parse", "HEAD")))
    assert "data/half" not in found and not left.exists()
    assert list((tmp_path / "layers").glob("building-*")) == []


def test_a_failing_build_leaves_nothing_behind(repo, store: LayerStore, tmp_path: Path, monkeypatch) -> None:
    def full(*rest: object) -> None:
        raise OSError(28, "No space left on device")

    base = repo.git("rev-parse", "HEAD")
    monkeypatch.setattr("arsandbox.sandbox.workspace.layers.Path.write_bytes", full)
    with pytest.raises(StateError, match="No space left"):
        store.layers(base)
    monkeypatch.undo()
    assert sorted(p.name for p in (tmp_path / "layers").iterdir()) == ["lock"]
    assert shown(tmp_path / "m", store.layers(base))[0] == of_git(repo, base)


def test_submodules_are_refused_by_name_in_full_and_delta(repo, store: LayerStore) -> None:
    base = repo.git("rev-parse", "HEAD")
    repo.git("update-index", "--add", "--cacheinfo", f"160000,{base},vendor/lib")
    commit = repo.git("commit-tree", repo.git("write-tree"), "-m", "x")
    for _ in range(2):
        with pytest.raises(RepositoryError, match="vendor/lib is a submodule"):
            store.layers(commit)
        store.layers(base)


def raw_tree(repo, entries: list[tuple[str, bytes, str]]) -> str:
    """A tree object with entries that git's own tools would refuse to write."""
    data = b"".join(mode.encode() + b" " + name + b"\0" + bytes.fromhex(sha) for mode, name, sha in entries)
    return repo.git("hash-object", "-t", "tree", "-w", "--literally", "--stdin", stdin=data)


@pytest.mark.parametrize("kind", ["dotdot", "dotdot-slash", "absolute", "symlink-and-directory", "git"])
@pytest.mark.parametrize("delta", [False, True])
def test_a_crafted_tree_writes_nothing_outside_its_layer(
    kind: str,
    delta: bool,
    repo,
    store: LayerStore,
    tmp_path: Path,
    within: Callable[[float], AbstractContextManager[None]],
) -> None:
    """Anyone who can write objects into the repository can write such a tree; `--commit` then names it."""
    victim = tmp_path / "victim"
    victim.mkdir(mode=0o700)
    (victim / "file").write_text("safe")
    blob = repo.git("hash-object", "-w", "--stdin", stdin=b"owned")
    link = repo.git("hash-object", "-w", "--stdin", stdin=os.fsencode(victim))
    inner = raw_tree(repo, [("100644", b"file", blob)])
    up = raw_tree(repo, [("40000", b"victim", inner)])
    for _ in range(2):
        up = raw_tree(repo, [("40000", b"..", up)])
    entries = {
        "dotdot": [("40000", b"..", up)],
        "dotdot-slash": [("100644", b"../../../victim/file", blob)],
        "absolute": [("100644", os.fsencode(victim / "file"), blob)],
        "symlink-and-directory": [("120000", b"a", link), ("40000", b"a", inner)],
        "git": [("40000", b".git", inner)],
    }[kind]
    commit = repo.git("commit-tree", raw_tree(repo, entries), "-m", "x")
    if delta:
        store.layers(repo.git("rev-parse", "HEAD"))
    refused = False
    with within(20):
        try:
            store.layers(commit)
        except ArsandboxError:
            refused = True
    assert (victim / "file").read_text() == "safe"
    assert stat.S_IMODE(victim.stat().st_mode) == 0o700
    assert refused


def test_only_the_owner_may_enter_the_store(repo, store: LayerStore, tmp_path: Path) -> None:
    store.layers(repo.git("rev-parse", "HEAD"))
    assert stat.S_IMODE((tmp_path / "layers").stat().st_mode) == 0o700


def test_is_below() -> None:
    assert is_below("a/b", ["a"]) and is_below("a", ["a"]) and is_below("a/b", ["x", "a/b"])
    assert not is_below("ab", ["a"]) and not is_below("a", ["a/b"]) and not is_below("a", [])


def test_space_and_unmounting(tmp_path: Path) -> None:
    place = tmp_path / "spa ce\\é"  # as mountinfo does not show it
    (place / "inner").mkdir(parents=True)
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=100", "tmpfs", str(place)], check=True)
        (place / "inner").mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(place / "inner")], check=True)
        assert not space_of(place).full
        (place / "big").write_bytes(b"x" * (1024**2 - 32 * 1024))
        assert space_of(place).full and space_of(place).used_bytes > 900_000
        (place / "big").unlink()
        assert not space_of(place).full
        with pytest.raises(OSError, match="No space"):
            for number in range(200):
                (place / str(number)).touch()
        assert space_of(place).full
        other = tmp_path / "space-other"
        other.mkdir()
        assert unmount_below(other) == []
        assert sorted(unmount_below(place)) == sorted([str(place), str(place / "inner")])
        assert unmount_below(place) == [] and list((place / "inner").iterdir()) == []
    finally:
        unmount_below(place)

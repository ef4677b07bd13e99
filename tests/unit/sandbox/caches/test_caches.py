"""Caches: copied in, compared before use, seen by the stages that may, adopted only by command."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from arsandbox.policies import sources
from arsandbox.sandbox import experiment, rebuild
from arsandbox.sandbox.caches import compiled
from arsandbox.sandbox.caches.store import CacheStore
from arsandbox.sandbox.config import parse
from arsandbox.sandbox.engines.fake import FakeEngine, Script, scripted
from arsandbox.sandbox.errors import ArsandboxError, MachineError, RefusedError, UsageError
from arsandbox.sandbox.events import Silent
from arsandbox.sandbox.ledger import Ledger
from arsandbox.sandbox.models import Stage
from arsandbox.sandbox.record import Record
from arsandbox.sandbox.settings import Options, Settings, resolve


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sources, "OWNER_FILE", tmp_path / "none.toml")
    monkeypatch.delenv("ARSANDBOX_POLICY", raising=False)
    monkeypatch.setenv("ARSANDBOX_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def store(home: Path) -> CacheStore:
    return CacheStore()


def folder(place: Path, **files: str) -> Path:
    for name, text in files.items():
        path = place / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return place


def age(store: CacheStore, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the files be old enough that their times are trusted, and remembered."""
    later = time.time_ns() + 10_000_000_000
    monkeypatch.setattr(time, "time_ns", lambda: later)
    store.open(name)


# The store


def test_a_version_is_named_by_what_it_holds(store: CacheStore, tmp_path: Path) -> None:
    source = folder(tmp_path / "a", x="1", deep__y="2")
    first = store.add("tokens", "dataset", source)
    assert store.add("tokens", "dataset", source).sha256 == first.sha256
    assert store.add("other", "dataset", folder(tmp_path / "b", deep__y="2", x="1")).sha256 == first.sha256
    assert store.add("kern", "kernels", source).sha256 != first.sha256
    (source / "x").write_text("3")  # the copy is its own
    assert (first.tree / "x").read_text() == "1"
    second = store.add("tokens", "dataset", source)
    assert store.open("tokens").sha256 == second.sha256 != first.sha256
    assert store.open("tokens", sha256=first.sha256).tree == first.tree
    assert store.names() == ["kern", "other", "tokens"]


@pytest.mark.parametrize("remembered", [False, True])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tree: (tree / "x").write_text("2"), "x was changed"),
        (lambda tree: (tree / "new").write_text(""), "new was added"),
        (lambda tree: (tree / "x").unlink(), "x was removed"),
        (lambda tree: (tree / "link").symlink_to("/etc"), "link has no place in a cache"),
        (lambda tree: (tree.parent / "manifest.json").write_text("{}"), "its manifest"),
    ],
)
def test_a_change_on_the_host_is_refused(
    store: CacheStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], Any], said: str,
    remembered: bool,
) -> None:  # fmt: skip
    tree = store.add("tokens", "dataset", folder(tmp_path / "a", x="1")).tree
    before = (tree / "x").stat()
    if remembered:
        age(store, "tokens", monkeypatch)
    change(tree)
    if (tree / "x").exists():  # the program that changed it sets the old time again
        os.utime(tree / "x", ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(RefusedError, match=said) as caught:
        store.open("tokens")
    assert caught.value.exit_code == 3
    assert "arsandbox cache add tokens" in caught.value.hint


def test_adding_again_repairs_a_version(store: CacheStore, tmp_path: Path) -> None:
    source = folder(tmp_path / "a", x="1")
    version = store.add("tokens", "dataset", source)
    (version.tree / "x").write_text("2")
    assert store.add("tokens", "dataset", source).sha256 == version.sha256
    assert (store.open("tokens", every_byte=True).tree / "x").read_text() == "1"


def test_unchanged_files_are_not_read_again_but_on_request(
    store: CacheStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add("tokens", "dataset", folder(tmp_path / "a", x="1", y="2"))
    age(store, "tokens", monkeypatch)
    read: list[str] = []
    monkeypatch.setattr("arsandbox.sandbox.caches.store.sha256_of", lambda path: read.append(path) or "0")
    store.open("tokens")
    assert read == []
    with pytest.raises(RefusedError):
        store.open("tokens", every_byte=True)
    assert len(read) == 2


def test_links_inside_become_files_and_links_outside_are_refused(store: CacheStore, tmp_path: Path) -> None:
    """A hub's cache has snapshots of links to blobs."""
    source = folder(tmp_path / "hub", blobs__b="weights", snapshots__1__note="x")
    (source / "snapshots" / "1" / "model").symlink_to("../../blobs/b")
    version = store.add("hub", "kernels", source)
    copy = version.tree / "snapshots" / "1" / "model"
    assert copy.read_text() == "weights" and not copy.is_symlink()
    for target in ("/etc/passwd", "../../../a", "missing"):
        (source / "snapshots" / "1" / "out").unlink(missing_ok=True)
        (source / "snapshots" / "1" / "out").symlink_to(target)
        with pytest.raises(UsageError, match=r"snapshots/1/out in .* is no file of that directory"):
            store.add("hub", "kernels", source)
    assert store.open("hub").sha256 == version.sha256


def test_what_is_not_here_or_of_another_kind(store: CacheStore, tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="'tokens' is not here"):
        store.open("tokens")
    store.add("tokens", "dataset", folder(tmp_path / "a", x="1"))
    with pytest.raises(MachineError, match="version 000000000000 of cache tokens is not here"):
        store.open("tokens", sha256="0" * 64)
    with pytest.raises(UsageError, match="of kind dataset, not kernels"):
        store.open("tokens", kind="kernels")
    with pytest.raises(UsageError, match="of kind dataset, not triton"):
        store.add("tokens", "triton", tmp_path / "a")
    for name in ("../x", "", "A", "a/b"):
        with pytest.raises(UsageError, match="not usable"):
            store.add(name, "dataset", tmp_path / "a")


# Which stage sees which


CONFIG = """
[metric]
name = "loss"
source = "evaluate"
[evaluate]
command = ["x"]
artifacts = ["out"]
[environment]
TIKTOKEN_CACHE_DIR = "/mine"
[caches.tokens]
kind = "dataset"
[caches.words]
kind = "tokenizer"
[caches.code]
kind = "inductor"
[caches.judged]
kind = "dataset"
stages = ["evaluate"]
target = "/data/judged"
"""


def settled(text: str, **options: Any) -> Settings:
    return resolve(parse(text, "x"), Options(**options))


@pytest.fixture
def filled(store: CacheStore, tmp_path: Path) -> CacheStore:
    source = folder(tmp_path / "source", x="1")
    for name, kind in (("tokens", "dataset"), ("words", "tokenizer"), ("code", "inductor"), ("judged", "dataset")):
        store.add(name, kind, source)  # type: ignore[arg-type]
    return store


def test_each_stage_sees_its_caches(filled: CacheStore) -> None:
    settings = settled(CONFIG)

    def targets(stage: Stage) -> list[str]:
        return sorted(mount.target for mount in settings.mounts_for(stage))

    assert targets(Stage.TRAIN) == ["/caches/tokens", "/caches/words"]
    assert targets(Stage.EVALUATE) == ["/caches/words", "/data/judged"]
    assert targets(Stage.MODEL) == ["/caches/words"]
    assert settings.cache_layers(Stage.TRAIN) == (filled.open("code").layer,)
    assert settings.cache_layers(Stage.EVALUATE) == settings.cache_layers(Stage.MODEL) == ()
    train, judge = settings.environment_for(Stage.TRAIN), settings.environment_for(Stage.EVALUATE)
    assert train == {"TIKTOKEN_CACHE_DIR": "/mine", "TORCHINDUCTOR_CACHE_DIR": "/workspace/.compiled/code"}
    assert judge == {"TIKTOKEN_CACHE_DIR": "/mine"}
    kinds = {use.name: (use.kind, use.stages) for use in settings.cache_uses()}
    assert kinds["code"] == ("inductor", ("train",)) and kinds["judged"] == ("dataset", ("evaluate",))


def test_another_version_is_another_set_up_unless_the_config_pins_one(filled: CacheStore, tmp_path: Path) -> None:
    def setup(text: str, **options: Any) -> str:
        return settled(text, **options).digest(image="i", fixed_tree="f", data=None)

    first, version = setup(CONFIG), filled.open("tokens").sha256
    pinned = CONFIG.replace("[caches.words]", f'sha256 = "{version}"\n[caches.words]')
    filled.add("tokens", "dataset", folder(tmp_path / "more", x="2"))
    assert setup(CONFIG) != first == setup(pinned)
    assert setup(CONFIG, caches={"tokens": version}) == first  # a rerun of what a record names
    with pytest.raises(MachineError, match="version 000000000000"):
        settled(pinned.replace(version, "0" * 64))


@pytest.mark.parametrize(
    ("text", "said", "code"),
    [
        ('[caches.code]\nkind = "inductor"\nstages = ["evaluate"]', "a compiled kind is for training alone", 2),
        ('[caches.code]\nkind = "triton"\ntarget = "/data"', "lies in the workspace", 2),
        ('[caches.x]\nkind = "weights"', "kind", 2),
        ('[caches.x]\nkind = "dataset"\nstage = ["train"]', "unknown key 'caches.x.stage'", 2),
        ('[caches.x]\nkind = "dataset"\ntarget = "/usr/lib"', "the sandbox has its own /usr", 2),
        ('[caches.missing]\nkind = "dataset"', "'missing' is not here", 4),
        ('[caches.tokens]\nkind = "kernels"', "of kind dataset, not kernels", 2),
    ],
)
def test_a_config_that_cannot_work(filled: CacheStore, text: str, said: str, code: int) -> None:
    with pytest.raises(ArsandboxError, match=said) as caught:
        settled(text)
    assert caught.value.exit_code == code


def test_the_policy_says_which_kinds_a_stage_may_see(
    filled: CacheStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = tmp_path / "owner.toml"
    monkeypatch.setenv("ARSANDBOX_POLICY", str(owner))
    owner.write_text('[stage.train]\ncaches = ["tokenizer"]\n')
    with pytest.raises(RefusedError, match=r"\[caches.tokens\] is of kind dataset, but the train stage may see"):
        settled(CONFIG)
    assert settled('[caches.words]\nkind = "tokenizer"')
    owner.write_text('caches = ["everything"]\n')
    with pytest.raises(UsageError, match="no kind of cache"):
        settled(CONFIG)


# Adoption


def test_adoption_adds_and_never_changes(store: CacheStore, tmp_path: Path) -> None:
    before = store.add("code", "inductor", folder(tmp_path / "a", old="good", deep__x="1"))
    after, count = store.adopt("code", folder(tmp_path / "b", old="POISON", deep__y="2", new="3"), origin="run")
    assert count == 2
    held = {name: (after.tree / name).read_text() for name in after.manifest.files}
    assert held == {"old": "good", "deep/x": "1", "deep/y": "2", "new": "3"}
    assert after.manifest.origin == "run" and store.open("code").sha256 == after.sha256
    assert store.open("code", sha256=before.sha256, every_byte=True).manifest.files.keys() == {"old", "deep/x"}
    store.add("tokens", "dataset", folder(tmp_path / "c", x="1"))
    with pytest.raises(UsageError, match="no run compiles it"):
        store.adopt("tokens", tmp_path / "b", origin="run")


def test_what_a_run_made_of_the_caches_paths_is_left_out(store: CacheStore, tmp_path: Path) -> None:
    """A candidate may put a folder where the cache has a file, and the other way round: neither stops an adoption."""
    store.add("code", "triton", folder(tmp_path / "a", file="good", deep__x="1"))
    run = folder(tmp_path / "b", file__inner__evil="2", deep="3", new="4")
    after, count = store.adopt("code", run, origin="run")
    assert count == 1
    assert {name: (after.tree / name).read_text() for name in after.manifest.files} == {
        "file": "good", "deep/x": "1", "new": "4",
    }  # fmt: skip
    assert after.manifest.size_bytes == len("good14")


def test_of_two_adoptions_at_once_none_is_lost(store: CacheStore, tmp_path: Path) -> None:
    store.add("code", "triton", folder(tmp_path / "a", old="1"))
    runs = [folder(tmp_path / f"run{number}", **{f"new{number}": "x"}) for number in range(6)]
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda run: store.adopt("code", run, origin=run.name), runs))
    assert store.open("code").manifest.files.keys() == {"old", *(f"new{number}" for number in range(6))}


def test_an_adoption_that_was_killed_leaves_nothing_for_good(store: CacheStore, tmp_path: Path, home: Path) -> None:
    store.add("code", "triton", folder(tmp_path / "a", old="1"))
    folder(home / "caches" / "code" / "adding-dead", half="1")
    store.adopt("code", folder(tmp_path / "b", new="2"), origin="run")
    held = {path.name for path in (home / "caches" / "code").iterdir() if not path.is_dir()}
    assert held == {"current.json", "lock"} and not list((home / "caches" / "code").glob("ad*"))
    with pytest.raises(MachineError, match="is not here"):
        store.adopt("nothing", tmp_path / "b", origin="run")
    assert not (home / "caches" / "nothing").exists()


@pytest.mark.parametrize("hostile", ["loop", "name", "pipe", "folder", "dangling"])
def test_what_cannot_be_cached_is_named(store: CacheStore, tmp_path: Path, hostile: str) -> None:
    source = folder(tmp_path / "a", fine="1", sub__x="2")
    match hostile:
        case "loop":
            (source / "bad").symlink_to("bad")
        case "name":
            Path(os.fsdecode(os.fsencode(source) + b"/bad\xff")).write_text("x")
        case "pipe":
            os.mkfifo(source / "bad")
        case "folder":
            (source / "bad").symlink_to("sub")
        case "dangling":
            (source / "bad").symlink_to("nowhere")
    with pytest.raises(UsageError, match=r"^bad in .* cannot be cached|^bad in .*UTF-8"):
        store.add("data", "dataset", source)
    assert store.names() == []


RUN = """
image = "cpu"
budget = "5s"
command = ["python", "train.py"]
editable = ["train.py"]
[metric]
name = "loss"
source = "stdout"
[decision]
rule = "greedy"
[caches.code]
kind = "inductor"
"""


def test_only_what_a_promoted_run_compiled_is_adopted(
    store: CacheStore, tmp_path: Path, make_repo: Callable[..., Any]
) -> None:
    first = store.add("code", "inductor", folder(tmp_path / "a", old="good"))
    repository = make_repo({"arsandbox.toml": RUN, "train.py": "print(1)\n"})
    engine = FakeEngine(
        scripted({
            Stage.TRAIN: [
                Script(output=b"METRIC loss=2.0\n", files={".compiled/code/base": b"b"}),
                Script(output=b"METRIC loss=1.0\n", files={".compiled/code/new": b"n"}),
            ]
        }),
        isolation="container",
    )  # fmt: skip
    (repository.path / "train.py").write_text("print(2)\n")
    asked = experiment.Request(repository.path, Options(accept_self_reported=True, tag="t"))
    winner: Record = experiment.run(experiment.plan(asked, find_image=engine.find_image), engine, Silent())
    assert winner.verdict == "keep" and winner.promotion is not None
    assert [(use.name, use.sha256) for use in winner.caches] == [("code", first.sha256)]
    assert all(spec.layers[-1] == first.layer for spec in engine.specs)
    assert store.open("code").sha256 == first.sha256  # nothing is adopted by itself
    opened = experiment.plan(asked, find_image=engine.find_image).repository
    state = opened.state
    with Ledger.open(state) as ledger:
        baseline = ledger.get(winner.baseline.experiment if winner.baseline else "")
    with pytest.raises(RefusedError, match="was not promoted"):
        compiled.adopt("code", baseline, state / "experiments" / baseline.id)
    with pytest.raises(UsageError, match="did not see the cache 'other'"):
        compiled.adopt("other", winner, state / "experiments" / winner.id)
    version, count = compiled.adopt("code", winner, state / "experiments" / winner.id)
    assert count == 1 and set(version.manifest.files) == {"old", "new"}
    assert version.manifest.origin == f"compiled by {winner.id}"
    # The next run sees the new version; a rerun of the record the one that it saw.
    assert experiment.plan(asked, find_image=engine.find_image).settings.caches[0].sha256 == version.sha256
    assert rebuild.settings_of(opened, winner).caches[0].sha256 == first.sha256 != version.sha256

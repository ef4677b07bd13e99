"""Recipes, layers, archives and the catalogue, without an engine, a mirror or an index."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from arsandbox.images import aptsources
from arsandbox.images.archive import ArchiveLayer, compose
from arsandbox.images.build import BuiltImage, build_image
from arsandbox.images.catalogue import Catalogue
from arsandbox.images.layers import LayerCache
from arsandbox.images.lockfile import locked_wheels
from arsandbox.images.programs import run_program
from arsandbox.images.recipe import RECIPES, Recipe, available, load_recipe
from arsandbox.images.tarlayer import EPOCH, Member, file_member, link_member, with_parents, write_layer
from arsandbox.images.wheels import platforms
from arsandbox.sandbox.errors import ArsandboxError, MachineError, StateError, UsageError

LOCK = (RECIPES / "cpu" / "requirements.lock").read_text()


def built(digit: str = "a", name: str = "cpu") -> BuiltImage:
    return BuiltImage(
        name=name,
        digest="sha256:" + digit * 64,
        size_bytes=10,
        recipe_sha256="b" * 64,
        packages=(("libc6", "2.36"),),
        built_seconds=1.5,
    )


def recipe_folder(tmp_path: Path, change: tuple[str, str] = ("", ""), lock: str = LOCK) -> Path:
    folder = tmp_path / "recipes" / "cpu"
    folder.mkdir(parents=True)
    text = (RECIPES / "cpu" / "recipe.toml").read_text()
    assert change[0] in text
    (folder / "recipe.toml").write_text(text.replace(change[0], change[1], 1) if change[0] else text)
    (folder / "requirements.lock").write_text(lock)
    return folder.parent


def layer(folder: Path, name: str, data: bytes) -> ArchiveLayer:
    buffer = io.BytesIO()
    write_layer(buffer, with_parents([file_member(name, data)]))
    path = folder / f"{hashlib.sha256(buffer.getvalue()).hexdigest()}.tar"
    path.write_bytes(buffer.getvalue())
    return ArchiveLayer(path, path.stem, len(buffer.getvalue()), "test")


# Recipes


def test_the_cpu_recipe_says_what_a_run_relies_on() -> None:
    recipe = load_recipe("cpu")
    assert "cpu" in available()
    assert (recipe.uid, recipe.gid) == (61000, 61000)
    assert recipe.default_gpus == "none"
    assert recipe.environment["PYTHONDONTWRITEBYTECODE"] == "1"
    assert {"python3.11", "libstdc++6", "busybox-static"} <= set(recipe.packages)
    assert "ca-certificates" not in recipe.packages
    with pytest.raises(ValidationError):
        recipe.name = "other"  # type: ignore[misc]


def test_an_unknown_name_gets_the_nearest_one() -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe("cpuu")
    assert caught.value.exit_code == 2
    assert "did you mean 'cpu'" in caught.value.hint


@pytest.mark.parametrize("name", ["../cpu", "cpu/../cpu", "", "/etc"])
def test_a_name_is_never_a_path(name: str) -> None:
    with pytest.raises(UsageError):
        load_recipe(name)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (('name = "cpu"', 'name = "cpu"\nnetwork = true'), "network"),
        (('name = "cpu"', 'name = "CPU image"'), "name"),
        (('name = "cpu"', 'name = "other"'), "calls itself"),
        (('user = "61000:61000"', 'user = "0:0"'), "user"),
        (('user = "61000:61000"', 'user = "61000"'), "user"),
        (('"base-files"', '"--option=x"'), "packages"),
        (('"netbase"', '"netbase,evil"'), "packages"),
        (('default_gpus = "none"', 'default_gpus = "some"'), "default_gpus"),
        (('default_gpus = "none"', 'default_gpus = "all"'), "default_gpus"),
        (('LANG = "C.UTF-8"', 'LANG = "a\\nb"'), "environment"),
        (('name = "cpu"', "name = "), "cannot be read"),
        (('wheels = "requirements.lock"', 'wheels = "missing.lock"'), "cannot be read"),
        (('wheels = "requirements.lock"', 'wheels = "../cpu/requirements.lock"'), "wheels"),
    ],
)
def test_a_bad_recipe_is_refused_by_the_field(tmp_path: Path, change: tuple[str, str], where: str) -> None:
    with pytest.raises(UsageError, match=where):
        load_recipe("cpu", recipe_folder(tmp_path, change))


@pytest.mark.parametrize(
    "lock",
    [
        "numpy==2.4.6\n",
        f"--index-url somewhere\n{LOCK}",
        f"{LOCK}\n-f folder\n",
        f"{LOCK}\nx @ https://files.invalid/x.whl\n",
    ],
)
def test_a_lock_file_without_hashes_or_with_an_index_is_refused(tmp_path: Path, lock: str) -> None:
    with pytest.raises(UsageError, match="lock file"):
        load_recipe("cpu", recipe_folder(tmp_path, lock=lock))


def test_the_digest_covers_the_lock_file(tmp_path: Path) -> None:
    same = load_recipe("cpu", recipe_folder(tmp_path / "a"))
    other = load_recipe("cpu", recipe_folder(tmp_path / "b", lock=LOCK + "# changed\n"))
    assert same.digest == load_recipe("cpu").digest != other.digest


def test_the_lock_file_is_pinned_for_both_processors_and_names_no_place() -> None:
    assert "://" not in LOCK
    requirements = re.split(r"\n(?=\S+==)", "\n".join(li for li in LOCK.splitlines() if not li.startswith("#")))
    assert [re.match(r"\w+==[\d.]+ ", text) is not None for text in requirements] == [True, True]
    for text, note in zip(requirements, re.findall(r"^# .*line by line: (.*)$", LOCK, re.MULTILINE), strict=True):
        hashes = re.findall(r"--hash=sha256:([0-9a-f]{64})(?![0-9a-f])", text)
        notes = note.partition(" (")[0].split(", ")
        assert len(hashes) == len(set(hashes)) == len(notes)
        assert {"x86_64", "aarch64"} <= {one.split()[-1] for one in notes if re.match("cp311|abi3", one)}


def test_platforms_stop_at_debian_12s_glibc() -> None:
    tags = platforms("aarch64")
    assert tags[0] == "manylinux_2_36_aarch64"
    assert "manylinux_2_28_aarch64" in tags
    assert not any("x86" in tag for tag in tags)


def test_a_recipe_adds_to_the_one_that_it_extends() -> None:
    cpu, cuda = load_recipe("cpu"), load_recipe("cuda12")
    assert set(cpu.packages) | {"gcc", "g++", "libc-bin", "libc6-dev", "libpython3.11-dev", "openssl"} == set(
        cuda.packages
    )
    assert (cuda.environment, cuda.user, cuda.applets) == (cpu.environment, cpu.user, cpu.applets)
    assert (cpu.default_gpus, cuda.default_gpus) == ("none", "1")
    assert cuda.check[:2] == ("python", "-c") and "Python.h" in cuda.check[2]
    assert load_recipe("pytest").packages == load_recipe("torch-cpu").packages == cpu.packages


@pytest.mark.parametrize("extended", ["missing", "pytest", "../cpu"])
def test_a_recipe_extends_only_one_that_stands_alone(tmp_path: Path, extended: str) -> None:
    folder = tmp_path / "recipes"
    for name in ("cpu", "pytest"):
        shutil.copytree(RECIPES / name, folder / name)
    shutil.copytree(RECIPES / "pytest", folder / "mine")
    text = (folder / "mine" / "recipe.toml").read_text()
    text = text.replace('name = "pytest"', 'name = "mine"').replace('extends = "cpu"', f'extends = "{extended}"')
    (folder / "mine" / "recipe.toml").write_text(text)
    with pytest.raises(UsageError, match="names no recipe that stands alone"):
        load_recipe("mine", folder)


@pytest.mark.parametrize("name", available())
def test_every_lock_file_is_readable_and_names_no_place(name: str) -> None:
    recipe = load_recipe(name)
    wheels = locked_wheels(recipe.requirements, python=recipe.python, machine="x86_64")
    assert len({one.requirement.partition("==")[0] for one in wheels}) == len(wheels) > 1
    assert "://" not in recipe.requirements


# Layers


def test_a_layer_depends_on_contents_only() -> None:
    members = [
        file_member("b/x", b"1", 0o4755),
        link_member("a", "b"),
        Member("c", 0o2777),
        Member("t", 0o1777),
    ]
    first, second = io.BytesIO(), io.BytesIO()
    write_layer(first, members)
    write_layer(second, reversed(members))
    assert first.getvalue() == second.getvalue()
    with tarfile.open(fileobj=io.BytesIO(first.getvalue())) as archive:
        entries = {entry.name: entry for entry in archive}
    assert list(entries) == ["a", "b/x", "c", "t"]
    assert not any(entry.mode & 0o6000 for entry in entries.values())
    assert entries["t"].mode == 0o1777
    assert {(entry.mtime, entry.uid, entry.uname) for entry in entries.values()} == {(EPOCH, 0, "")}


def test_a_cached_layer_is_made_once_and_checked(tmp_path: Path) -> None:
    cache, calls = LayerCache(tmp_path), []

    def make(target: io.BufferedWriter) -> tuple[tuple[str, str], ...]:
        calls.append(1)
        target.write(b"layer")
        return (("libc6", "2.36"),)

    first = cache.obtain("ab", make)  # type: ignore[arg-type]
    assert cache.obtain("ab", make) == first  # type: ignore[arg-type]
    assert first.packages == (("libc6", "2.36"),)
    assert len(calls) == 1
    cache.path(first).write_bytes(b"spoil")
    assert cache.obtain("ab", make) == first  # type: ignore[arg-type]
    assert cache.path(first).read_bytes() == b"layer"
    cache.obtain("ab", make, use_cache=False)  # type: ignore[arg-type]
    assert len(calls) == 3


@pytest.mark.parametrize("failure", [KeyboardInterrupt, MachineError])
def test_an_interrupted_layer_leaves_nothing(tmp_path: Path, failure: type[BaseException]) -> None:
    def make(target: io.BufferedWriter) -> tuple[tuple[str, str], ...]:
        target.write(b"half")
        raise failure("stop")

    with pytest.raises(failure):
        LayerCache(tmp_path).obtain("ab", make)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["ab.lock"]


def test_two_builds_of_one_layer_take_turns(tmp_path: Path) -> None:
    inside, started, go, waited = [], threading.Event(), threading.Event(), threading.Event()

    def slow(target: io.BufferedWriter) -> tuple[tuple[str, str], ...]:
        inside.append("slow")
        started.set()
        assert go.wait(10)
        target.write(b"layer")
        return ()

    def never(target: io.BufferedWriter) -> tuple[tuple[str, str], ...]:
        raise AssertionError("the second build found no layer")

    found = []
    one = threading.Thread(target=lambda: found.append(LayerCache(tmp_path).obtain("ab", slow)))  # type: ignore[arg-type]
    one.start()
    assert started.wait(10)
    two = threading.Thread(
        target=lambda: found.append(LayerCache(tmp_path).obtain("ab", never, waiting=waited.set))  # type: ignore[arg-type]
    )
    two.start()
    assert waited.wait(10)
    go.set()
    one.join(10)
    two.join(10)
    assert len(found) == 2
    assert found[0] == found[1]


# Archives


def test_an_archive_is_the_same_every_time_and_its_id_is_the_configurations_hash(tmp_path: Path) -> None:
    layers = [layer(tmp_path, "a/b", b"1" * 700), layer(tmp_path, "c", b"2")]
    archive = compose(load_recipe("cpu"), "x86_64", layers)
    data = b"".join(archive.stream())
    assert data == b"".join(compose(load_recipe("cpu"), "x86_64", layers).stream())
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        manifest = json.loads(tar.extractfile("manifest.json").read())[0]  # type: ignore[union-attr]
        config = tar.extractfile(manifest["Config"]).read()  # type: ignore[union-attr]
        diff_ids = [
            hashlib.sha256(tar.extractfile(name).read()).hexdigest()  # type: ignore[union-attr]
            for name in manifest["Layers"]
        ]
    assert archive.image_id == f"sha256:{hashlib.sha256(config).hexdigest()}"
    assert manifest["RepoTags"] == [f"arsandbox/cpu:{archive.image_id[7:19]}"]
    parsed = json.loads(config)
    assert parsed["rootfs"]["diff_ids"] == [f"sha256:{one}" for one in diff_ids]
    assert parsed["architecture"] == "amd64"
    assert parsed["config"]["User"] == "61000:61000"
    assert parsed["config"]["WorkingDir"] == "/workspace"
    assert parsed["config"]["Labels"] == {
        "arsandbox.image": "cpu",
        "arsandbox.recipe": load_recipe("cpu").digest,
    }


def test_equal_layers_are_stored_once(tmp_path: Path) -> None:
    one = layer(tmp_path, "a", b"1")
    data = b"".join(compose(load_recipe("cpu"), "aarch64", [one, one]).stream())
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.getnames().count(f"{one.sha256}/layer.tar") == 1


@pytest.mark.parametrize("spoil", [lambda path: path.write_bytes(b"short"), lambda path: path.unlink()])
def test_a_layer_that_changed_is_not_passed_on_silently(tmp_path: Path, spoil: object) -> None:
    one = layer(tmp_path, "a", b"1")
    spoil(one.path)  # type: ignore[operator]
    with pytest.raises(StateError, match="layer"):
        list(compose(load_recipe("cpu"), "x86_64", [one]).stream())


def test_another_processor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="riscv64"):
        compose(load_recipe("cpu"), "riscv64", [])


def fake_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    def rootfs(recipe: Recipe, target: io.BytesIO, scratch: Path, progress: object) -> tuple[tuple[str, str], ...]:
        write_layer(target, [file_member("system", b"s")])
        return (("libc6", "2.36"),)

    monkeypatch.setattr("arsandbox.images.build.build_rootfs", rootfs)
    monkeypatch.setattr("arsandbox.images.build.obtain_wheels", lambda locked, **more: [])
    monkeypatch.setattr(
        "arsandbox.images.build.write_wheels",
        lambda wheels, python, target: write_layer(target, [file_member("wheels", b"w")]),
    )
    monkeypatch.setattr(
        "arsandbox.images.build.build_bytecode",
        lambda recipe, machine, layers, target, scratch: write_layer(target, [file_member("code", b"c")]),
    )
    monkeypatch.setattr("platform.machine", lambda: "x86_64")


def loaded_id(pieces: object) -> str:
    with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as tar:  # type: ignore[arg-type]
        config = json.loads(tar.extractfile("manifest.json").read())[0]["Config"]  # type: ignore[union-attr]
    return f"sha256:{config.removesuffix('.json')}"


def test_a_build_returns_what_the_engine_confirmed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_parts(monkeypatch)
    lines: list[str] = []
    image = build_image(load_recipe("cpu"), cache=tmp_path / "c", load=loaded_id, progress=lines.append)
    again = build_image(load_recipe("cpu"), cache=tmp_path / "d", load=loaded_id, progress=lambda text: None)
    assert image.digest == again.digest
    assert image.packages == (("libc6", "2.36"),)
    assert image.recipe_sha256 == load_recipe("cpu").digest
    assert lines[0] == "system: building"


def test_an_engine_that_reports_another_id_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_parts(monkeypatch)
    with pytest.raises(MachineError, match="computed was sha256:"):
        build_image(
            load_recipe("cpu"),
            cache=tmp_path,
            load=lambda pieces: "sha256:" + "0" * 64,
            progress=lambda text: None,
        )


# Programs and mirrors


def test_a_missing_program_says_how_to_get_it() -> None:
    with pytest.raises(MachineError) as caught:
        run_program(["arsandbox-no-such-program"], missing_hint="apt-get install it")
    assert caught.value.hint == "apt-get install it"
    with pytest.raises(MachineError, match=r"exit 3\): E: broken$"):
        run_program(["sh", "-c", "echo 'E: broken' >&2; echo bye >&2; exit 3"], missing_hint="")


def test_only_debians_own_suites_come_from_the_hosts_sources(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "os-release").write_text("ID=debian\n")
    (tmp_path / "sources.list").write_text(
        "# deb http://a.invalid bookworm main\n"
        "deb [arch=amd64 signed-by=/k.gpg] http://a.invalid/d bookworm main contrib\n"
        "deb http://b.invalid/d bookworm stable\n"
        "deb http://b.invalid/d bookworm-extra main\n"
    )
    (tmp_path / "sources.list.d" / "x.sources").write_text(
        "Types: deb deb-src\nURIs: http://c.invalid/s\nSuites: bookworm-security trixie\nComponents: main\n"
        "Signed-By: /s.gpg\n\n"
        "Enabled: no\nTypes: deb\nURIs: http://d.invalid\nSuites: bookworm\nComponents: main\n"
    )
    (tmp_path / "sources.list.d" / "x.bak").write_text("deb http://e.invalid bookworm main\n")
    found = aptsources.host_sources("bookworm", apt=tmp_path, os_release=tmp_path / "os-release")
    assert found.splitlines() == [
        "deb [signed-by=/k.gpg] http://a.invalid/d bookworm main",
        "deb [signed-by=/s.gpg] http://c.invalid/s bookworm-security main",
    ]
    assert aptsources.host_sources("sid", apt=tmp_path, os_release=tmp_path / "os-release") == ""
    (tmp_path / "os-release").write_text("ID=ubuntu\n")
    assert aptsources.host_sources("bookworm", apt=tmp_path, os_release=tmp_path / "os-release") == ""


# The catalogue


def test_a_pinned_image_is_found_by_name(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path / "state" / "images.json")
    assert catalogue.entries() == ()
    pinned = catalogue.pin(built("a"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", pinned.built_at)
    assert Catalogue(tmp_path / "state" / "images.json").resolve("cpu") == pinned
    assert catalogue.pin(built("c")).digest == catalogue.resolve("cpu").digest == "sha256:" + "c" * 64
    assert len(catalogue.entries()) == 1


def test_an_unknown_image_and_an_unbuilt_image_are_told_apart(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path / "images.json")
    with pytest.raises(UsageError, match="no image recipe 'cup'"):
        catalogue.resolve("cup")
    with pytest.raises(MachineError) as caught:
        catalogue.resolve("cpu")
    assert caught.value.hint == "arsandbox image build cpu"
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b'{"version": 2, "images": {}}',
        b'{"version": 1, "images": {"cpu": {"digest": "latest"}}}',
        b'{"version": 1, "images": {}, "more": 1}',
    ],
)
def test_a_damaged_catalogue_is_named_and_kept(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "images.json"
    path.write_bytes(text)
    calls: list[Callable[[], object]] = [
        lambda: Catalogue(path).resolve("cpu"),
        lambda: Catalogue(path).pin(built()),
    ]
    for call in calls:
        with pytest.raises(ArsandboxError, match=r"images\.json is damaged") as caught:
            call()
        assert caught.value.exit_code == 5
    assert path.read_bytes() == text


def test_a_failed_write_keeps_the_old_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "images.json"
    Catalogue(path).pin(built("a"))
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StateError, match="no space left"):
        Catalogue(path).pin(built("c"))
    assert path.read_bytes() == before
    assert sorted(one.name for one in tmp_path.iterdir()) == ["images.json", "images.json.lock"]


def test_pins_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    path = tmp_path / "images.json"
    names = [f"image{number}" for number in range(8)]
    threads = [threading.Thread(target=Catalogue(path).pin, args=(built("a", name),)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert [entry.name for entry in Catalogue(path).entries()] == names

"""Recipes and lock files: what they say, and what is refused."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from pydantic import ValidationError

from arsandbox.images.lockfile import locked_wheels
from arsandbox.images.recipe import RECIPES, available, load_recipe
from arsandbox.images.wheels import platforms
from arsandbox.sandbox.errors import UsageError

LOCK = (RECIPES / "cpu" / "requirements.lock").read_text()


def recipe_folder(tmp_path: Path, change: tuple[str, str] = ("", ""), lock: str = LOCK) -> Path:
    folder = tmp_path / "recipes" / "cpu"
    folder.mkdir(parents=True)
    text = (RECIPES / "cpu" / "recipe.toml").read_text()
    assert change[0] in text
    (folder / "recipe.toml").write_text(text.replace(change[0], change[1], 1) if change[0] else text)
    (folder / "requirements.lock").write_text(lock)
    return folder.parent


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

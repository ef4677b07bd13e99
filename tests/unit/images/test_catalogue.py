"""The catalogue of built images."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from arsandbox.images.build import BuiltImage
from arsandbox.images.catalogue import Catalogue
from arsandbox.sandbox.errors import ArsandboxError, MachineError, StateError, UsageError


def built(digit: str = "a", name: str = "cpu") -> BuiltImage:
    return BuiltImage(
        name=name,
        digest="sha256:" + digit * 64,
        size_bytes=10,
        recipe_sha256="b" * 64,
        packages=(("libc6", "2.36"),),
        built_seconds=1.5,
    )


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

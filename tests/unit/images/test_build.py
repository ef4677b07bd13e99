"""Builds without an engine, a mirror or an index; the programs and package sources that they need."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from arsandbox.images import aptsources
from arsandbox.images.build import build_image
from arsandbox.images.programs import run_program
from arsandbox.images.recipe import Recipe, load_recipe
from arsandbox.images.tarlayer import file_member, write_layer
from arsandbox.sandbox.errors import MachineError


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

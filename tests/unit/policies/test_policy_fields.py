"""Fields of the policy that are enforced before any sandbox starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from arsandbox.policies import sources
from arsandbox.sandbox.config import parse
from arsandbox.sandbox.errors import ArsandboxError, MachineError, RefusedError, UsageError
from arsandbox.sandbox.models import Stage
from arsandbox.sandbox.settings import Options, Settings, resolve


@pytest.fixture(autouse=True)
def owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The machine owner's file, by the variable."""
    monkeypatch.setattr(sources, "OWNER_FILE", tmp_path / "none.toml")
    file = tmp_path / "owner.toml"
    file.write_text("")
    monkeypatch.setenv("ARSANDBOX_POLICY", str(file))
    return file


def settled(text: str, owner: Path, said: str, **options: object) -> Settings:
    owner.write_text(said)
    return resolve(parse(text, "x"), Options(**options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "stage"),
    [
        ("budget = '50s'\ngrace = '20s'", "train"),
        ("budget = '1s'\n[prepare]\ncommand = ['x']\noutputs = ['o']\ntimeout = '2m'", "prepare"),
        (
            "budget = '1s'\n[metric]\nsource = 'evaluate'\n[evaluate]\ncommand = ['x']\nartifacts = ['o']\n"
            "timeout = '2m'",
            "evaluate",
        ),
    ],
)
def test_a_longer_time_than_allowed_is_refused(owner: Path, text: str, stage: str) -> None:
    with pytest.raises(RefusedError, match=f"{stage} stage at most 60 s"):
        settled(text, owner, "[limits]\nwall_s = '1m'")
    assert settled(text, owner, "[limits]\nwall_s = '2m'")


def test_a_variable_that_may_not_pass_is_refused(owner: Path) -> None:
    text = "[environment]\nHF_HOME = '/x'\nOTHER = '1'"
    with pytest.raises(RefusedError, match="OTHER"):
        settled(text, owner, "environment = ['HF_*']")
    assert settled(text, owner, "environment = ['HF_*', 'OTHER']")
    with pytest.raises(RefusedError, match="HF_HOME"):
        settled(text, owner, "", policy="strict")


def test_a_reserved_variable_never_passes(owner: Path) -> None:
    with pytest.raises(ArsandboxError, match="NVIDIA_DRIVER_CAPABILITIES"):
        settled("[environment]\nNVIDIA_DRIVER_CAPABILITIES = 'all'", owner, "")


def test_only_allowed_directories_are_mounted(owner: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arsandbox.sandbox.config_values._TAKEN", ())  # the test's directories may lie below /tmp
    data = tmp_path / "data"
    (data / "sub").mkdir(parents=True)
    (data / "out").symlink_to(tmp_path)
    with pytest.raises(RefusedError, match="mounts"):
        settled(f"mounts = ['{data}']", owner, "")
    allowed = f"mounts = ['{data}']"
    (mount,) = settled(f"mounts = ['{data}/sub']", owner, allowed).mounts_for(Stage.TRAIN)
    assert (mount.source, mount.target) == (data / "sub", f"{data}/sub")
    with pytest.raises(RefusedError, match="mounts"):  # a link leads elsewhere
        settled(f"mounts = ['{data}/out']", owner, allowed)
    with pytest.raises(RefusedError, match="mounts"):
        settled(f"mounts = ['{tmp_path}']", owner, allowed)
    with pytest.raises(MachineError, match="not a directory"):
        settled(f"mounts = ['{data}/missing']", owner, allowed)


@pytest.mark.parametrize("path", ["/", "/proc/1", "/workspace", "/etc", "data", "/a/../etc"])
def test_places_that_the_sandbox_has_itself_are_no_mounts(path: str) -> None:
    with pytest.raises(UsageError, match="mounts"):
        parse(f"mounts = ['{path}']", "x")


def test_the_policy_bounds_what_may_be_edited(owner: Path) -> None:
    rules = settled("editable = ['src/', 'train.py']", owner, "editable = ['src/']\nprotected = ['src/core.py']").rules
    assert rules.is_editable("src/a.py")
    assert not rules.is_editable("train.py")
    assert rules.is_protected("src/core.py") and not rules.is_editable("src/core.py")

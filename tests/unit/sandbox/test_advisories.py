"""Known holes: judged by the distribution's package version where it backports, else by upstream's."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from arsandbox.sandbox import advisories
from arsandbox.sandbox.advisories import ADVISORIES, judge
from arsandbox.sandbox.doctor import known_holes

LEAK, MASKED, MOUNT, MOUNT_AGAIN, TOOLKIT = ADVISORIES


@pytest.mark.parametrize(
    ("advisory", "version", "expected"),
    [
        (LEAK, "1.1.11", "broken"),
        (LEAK, "1.1.12", "fixed"),
        (LEAK, "1.0.3", "broken"),
        (LEAK, "1.3.0", "fixed"),
        (MASKED, "1.1.15", "broken"),
        (MASKED, "1.2.7", "broken"),
        (MASKED, "1.2.8", "fixed"),
        (MASKED, "1.3.2", "broken"),
        (MASKED, "1.3.3", "fixed"),
        (MASKED, "1.4.0-rc.2", "broken"),
        (MASKED, "1.4.0-rc.3", "fixed"),
        (MASKED, "1.4.0", "fixed"),
        (MASKED, "1.5.1", "fixed"),
        (MOUNT, "1.16.1", "broken"),
        (MOUNT, "1.16.2", "fixed"),
        (MOUNT_AGAIN, "1.17.3", "broken"),
        (MOUNT_AGAIN, "1.17.4", "fixed"),
        (TOOLKIT, "1.17.7", "broken"),
        (TOOLKIT, "1.17.8", "fixed"),
        (TOOLKIT, "1.18.0", "fixed"),
        (LEAK, "unknown", "unknown"),
    ],
)
def test_upstream_versions(advisory: advisories.Advisory, version: str, expected: str) -> None:
    assert judge(advisory, version) == expected


@pytest.mark.skipif(shutil.which("dpkg") is None, reason="dpkg compares its versions")
@pytest.mark.parametrize(
    ("package", "leak", "masked"),
    [
        ("1.1.5+ds1-1+deb12u1", "fixed", "unknown"),
        ("1.1.5+ds1-1+b4", "broken", "unknown"),
        ("1.1.5+ds1-1", "broken", "unknown"),
        ("1.1.6+ds1-9", "unknown", "unknown"),
    ],
)
def test_a_distribution_that_backports(package: str, leak: str, masked: str) -> None:
    assert (judge(LEAK, "1.1.5+ds1", package), judge(MASKED, "1.1.5+ds1", package)) == (leak, masked)


def test_the_toolkits_version_is_what_it_says_and_else_its_hooks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    before = advisories.toolkit_version()
    for name, option, words, version in (
        ("nvidia-container-runtime-hook", "-version", "NVIDIA Container Runtime Hook version 1.14.3", "1.14.3"),
        ("nvidia-ctk", "--version", "NVIDIA Container Toolkit CLI version 1.17.8", "1.17.8"),
    ):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\n[ \"$1\" = {option} ] && echo '{words}'\necho 'commit: 0f1e2d3c'\n")
        program.chmod(0o755)
        assert advisories.toolkit_version() == (version, None) != before


@pytest.mark.parametrize(
    ("found", "status", "said"),
    [
        (("1.1.5", None), "missing", "CVE-2024-21626"),
        (("1.3.3", None), "ok", "1.3.3"),
        (("1.1.6+ds1", "1.1.6+ds1-9"), "warning", "CVE-2025-31133"),
        (None, "ok", "not installed"),
    ],
)
def test_known_holes_are_named(
    monkeypatch: pytest.MonkeyPatch, found: tuple[str, str | None] | None, status: str, said: str
) -> None:
    monkeypatch.setattr(advisories, "runc_version", lambda: found)
    monkeypatch.setattr(advisories, "toolkit_version", lambda: None)
    row = known_holes()
    assert row.status == status
    assert said in row.detail
    assert bool(row.fix) == (status != "ok")

"""The commands as users and scripts call them: help, version, and those that measure nothing."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from arsandbox_fixtures.command_line import arsandbox
from arsandbox_fixtures.image import image_digest

pytestmark = [pytest.mark.engine, pytest.mark.timeout(120)]


# --- help and version -------------------------------------------------------------------------------------


def test_help_is_fast_and_names_every_command(home: Path) -> None:
    times = []
    for _ in range(3):
        began = time.monotonic()
        done = arsandbox("--help", fresh=True)
        times.append(time.monotonic() - began)
        assert done.code == 0
    assert min(times) < 1, times
    for name in (
        "demo",
        "init",
        "prepare",
        "run",
        "history",
        "show",
        "diff",
        "logs",
        "verify",
        "doctor",
        "gc",
        "image",
    ):
        assert name in done.out
    for name in ("run", "image"):
        helped = arsandbox(name, "-h")
        assert helped.code == 0 and "Usage" in helped.out and helped.err == ""


def test_help_needs_neither_docker_nor_a_home(tmp_path: Path) -> None:
    done = arsandbox("--help", env={"DOCKER_HOST": "unix:///nowhere", "ARSANDBOX_HOME": "/proc/nowhere"}, fresh=True)
    assert done.code == 0 and done.err == ""


def test_version(home: Path) -> None:
    from importlib.metadata import version

    done = arsandbox("--version", fresh=True)
    assert (done.code, done.out.strip()) == (0, f"arsandbox {version('arsandbox')}")


def test_no_arguments_show_the_help(home: Path) -> None:
    done = arsandbox(fresh=True)
    assert "Usage" in done.out + done.err and "demo" in done.out + done.err, done
    assert done.code in (0, 2)


def test_prepare_without_a_section(project: Any) -> None:
    done = project().cli("prepare")
    assert done.code == 0 and "nothing to prepare" in done.out


def test_doctor(home: Path) -> None:
    done = arsandbox("doctor", "--json")
    rows = {row["name"]: row for row in json.loads(done.out)}
    assert rows["engine"]["status"] == "ok" and rows["git"]["status"] == "ok"
    assert (done.code == 4) == any(row["status"] == "missing" for row in rows.values())
    assert arsandbox("doctor", fresh=True).code == done.code
    assert all(row["fix"] for row in rows.values() if row["status"] == "missing")


def test_image_list(home: Path) -> None:
    done = arsandbox("image", "list", "--json")
    rows = {row["name"]: row["pinned"] for row in json.loads(done.out)}
    assert rows["cpu"]["digest"] == image_digest()
    assert image_digest() in arsandbox("image", "list").out


def test_gc_of_nothing(project: Any) -> None:
    done = arsandbox("gc")
    assert done.code == 0 and "nothing was left" in done.err


def test_progress_and_verdict_go_to_standard_error(project: Any) -> None:
    done = project().run()
    assert (done.code, done.out) == (0, "")
    assert "baseline" in done.err and "\x1b" not in done.err

"""`arsandbox policy show` and `policy check`, and a refusal as the user sees it. No engine is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from arsandbox.policies.meet import rules
from arsandbox_fixtures.command_line import arsandbox


@pytest.fixture
def cli(project: Any, tmp_path: Path) -> Any:
    """Runs a command on a project under an owner's file that allows half a gibibyte."""
    owner = tmp_path / "owner.toml"
    owner.write_text('self_reported = "never"\n[limits]\nmemory_bytes = "512m"\n')
    task = project({"arsandbox.toml": '[metric]\nname = "x"\n[limits]\npids = 77\n'})
    task.env["ARSANDBOX_POLICY"] = str(owner)
    return task


def test_show_names_each_field_and_its_source(cli: Any) -> None:
    done = cli.cli("policy", "show", "--json")
    assert done.code == 0, done
    fields = json.loads(done.out)["fields"]
    assert set(fields) == set(rules())
    assert (fields["limits.pids"]["value"], fields["limits.pids"]["source"]) == (77, "[limits] of the project")
    assert fields["limits.memory_bytes"]["value"] == 512 * 1024**2
    assert "owner.toml" in fields["limits.memory_bytes"]["source"]
    text = cli.cli("policy", "show", "--stage", "prepare").out
    assert {line.split()[0] for line in text.splitlines()} == set(rules()) | {"sha256"}


def test_who_asks_for_more_is_refused_by_both_names(cli: Any) -> None:
    done = cli.run("--memory", "1g", "--dry-run")
    assert done.code == 3
    for part in ("limits.memory_bytes", "the command line", "1.0 GiB", "owner.toml", "512.0 MiB"):
        assert part in done.err, done.err


def test_check_says_what_a_file_holds(cli: Any, tmp_path: Path) -> None:
    def check(file: Path) -> Any:
        return arsandbox("policy", "check", file, env=cli.env)

    good, loose, bad = (tmp_path / name for name in ("good.toml", "loose.toml", "bad.toml"))
    good.write_text('[limits]\nmemory_bytes = "256m"\n[stage.train]\ngpus = 1\n')
    loose.write_text('[limits]\nmemory_bytes = "1g"\n')
    bad.write_text("gpu = 1\n")
    done = check(good)
    assert done.code == 0 and "256.0 MiB" in done.out and "(train stage)" in done.out
    assert check(loose).code == 3
    refused = check(bad)
    assert refused.code == 2 and "gpus" in refused.err


def test_an_unknown_stage_or_preset_is_a_usage_error(cli: Any) -> None:
    assert cli.cli("policy", "show", "--stage", "training").code == 2
    assert cli.cli("policy", "show", "--policy", "strikt").code == 2

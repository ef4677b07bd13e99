"""The config that `init` writes for karpathy/autoresearch, on a checkout of its structure that needs no GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from arsandbox_fixtures.command_line import arsandbox
from arsandbox_fixtures.projects import Project

pytestmark = pytest.mark.engine

# What the real one imports and fetches, in a few lines each: where things are kept is as there.
FILES = {
    "pyproject.toml": "[project]\nname = 'autoresearch'\nversion = '0.1.0'\ndependencies = ['torch', 'kernels']\n",
    "program.md": "# autoresearch\n",
    "kernels.py": """
import os
PLACE = os.path.expanduser("~/.cache/huggingface/hub/kernel.txt")
def install_kernel(name, revision):
    assert os.environ["HF_HUB_OFFLINE"] == "0"
    os.makedirs(os.path.dirname(PLACE), exist_ok=True)
    open(PLACE, "w").write(name)
def get_kernel(name):
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert open(PLACE).read() == name
""",
    "prepare.py": """
import os
DATA = os.path.join(os.path.expanduser("~"), ".cache", "autoresearch", "data")
if __name__ == "__main__":
    os.makedirs(DATA)
    open(os.path.join(DATA, "shard_00000.txt"), "w").write("1.25")
""",
    "train.py": """
from kernels import get_kernel
get_kernel("someone/some-kernel")
from prepare import DATA
value = float(open(DATA + "/shard_00000.txt").read())
open(DATA + "/shard_00000.txt", "w").write("9")
print("\\rstep 00001 (100.0%) | loss: 2.0", end="")
print()
print("---")
print(f"val_bpb:          {value:.6f}")
print("peak_vram_mb:     0.0")
""",
}


def test_init_writes_what_runs_it_unchanged(home: Path, tmp_path: Path) -> None:
    task = Project.create(tmp_path / "autoresearch")
    task.git("rm", "-q", "-r", ".")
    task.commit(FILES, "autoresearch")
    done = task.cli("init")
    assert done.code == 0 and "karpathy/autoresearch, on a GPU" in done.out, done
    task.commit({}, "add arsandbox.toml")
    shown = _policy(task)
    assert shown["fields"]["gpus"] == {"value": 1, "source": "gpus of the project"}
    dry = task.run("--dry-run", "--json")
    assert dry.code == 0, dry
    plan = json.loads(dry.out)
    assert (plan["gpus"], plan["grace_s"], plan["branch"]) == ("1", 300.0, "autoresearch/t")
    prepare, train = plan["stages"]
    assert "huggingface.co:443" in prepare["network"] and train["network"] == []
    assert train["deadline_s"] == 600.0
    # The same on a machine without a GPU: as far as that goes.
    small = ("--image", "cpu", "--gpus", "none", "--memory", "512m", "--disk", "512m", "--json")
    for again in ((), ("--commit", "HEAD")):
        done = task.run(*small, *again)
        assert done.code == 0, done
        record = done.record
        assert record["metric"]["value"] == 1.25 and record["trust"] == "L1", done
        assert record["change_set"]["paths"], record  # what it wrote to the frozen data went with its workspace
    assert record["prepared"]["egress"]["requests"] == []


def _policy(task: Any) -> Any:
    done = arsandbox("policy", "show", "--repo", task.path, "--json", env=task.env)
    assert done.code == 0, done
    return json.loads(done.out)

"""`init` for karpathy/autoresearch: recognised by its files, and what the config makes of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from arsandbox.sandbox import config, layout
from arsandbox.sandbox.errors import UsageError

# Of the public repository's structure, without its code.
CHECKOUT = {
    "pyproject.toml": """
[project]
name = "autoresearch"
version = "0.1.0"
dependencies = ["kernels>=0.11.7", "numpy>=2.2.6", "pyarrow>=21.0.0", "requests>=2.32.0", "torch==2.9.1"]
""",
    "program.md": "# autoresearch\n",
    "prepare.py": """
import os
TIME_BUDGET = 300
CACHE_DIR = os.path.join(os.path.expanduser("~"), ".cache", "autoresearch")
BASE_URL = "https://huggingface.co/datasets/someone/some-data/resolve/main"
MIRROR = "https://files.example:8443/data"
""",
    "train.py": """
from kernels import get_kernel
cap = (9, 0)
repo = "varunneal/flash-attention-3" if cap == (9, 0) else "kernels-community/flash-attn3"
other = "not/this"
fa3 = get_kernel(repo).flash_attn_interface
""",
}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    place = tmp_path / "autoresearch"
    place.mkdir()
    for name, text in CHECKOUT.items():
        (place / name).write_text(text)
    return place


def written(place: Path) -> tuple[str, config.ProjectConfig]:
    kind, file = layout.starting_config(place, force=True)
    return kind, config.parse(file.read_text(), "arsandbox.toml")


def test_the_config_holds_what_the_code_needs(checkout: Path) -> None:
    kind, project = written(checkout)
    assert kind == "karpathy/autoresearch, on a GPU"
    assert (project.image, project.gpus, project.budget, project.grace) == ("cuda12", "1", 300.0, 300.0)
    assert project.metric.evaluator == ("prepare.py",) and {"prepare.py", "program.md"} <= set(project.protected)
    assert project.prepare is not None
    assert project.prepare.outputs == (".cache/autoresearch", ".cache/huggingface")
    assert project.prepare.network == "allowlist"
    assert {"huggingface.co:443", "files.example:8443", "cas-bridge.xethub.hf.co:443"} <= set(project.prepare.hosts)
    script = project.prepare.command[2]
    assert '["kernels-community/flash-attn3", "varunneal/flash-attention-3"]' in script and "not/this" not in script
    assert project.environment["HOME"] == "/workspace" and project.environment["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pyproject.toml", "[project]\ndependencies = ['torchvision', 'kernels']"),
        ("pyproject.toml", "[project]\ndependencies = ['torch']"),
        ("pyproject.toml", "[project"),
        ("pyproject.toml", "project = 3"),
        ("program.md", None),
    ],
)
def test_another_project_is_not_taken_for_it(checkout: Path, name: str, text: str | None) -> None:
    (checkout / name).unlink()
    if text is not None:
        (checkout / name).write_text(text)
    kind, project = written(checkout)
    assert "GPU" not in kind and project.image == "cpu"


def test_a_fork_without_kernels_or_with_nonsense_gets_a_config_that_loads(checkout: Path) -> None:
    for text in ("def broken(:", "get_kernel('a/b')\nget_kernel(x)\nx = 'c/d'; y = 'e/f'", "x = " + "(" * 2000):
        (checkout / "train.py").write_text(text)
        _, project = written(checkout)
        assert project.prepare is not None
        expected = '["a/b", "c/d"]' if "get_kernel" in text else "wanted, found = [], []"
        assert expected in project.prepare.command[2]
        assert (".cache/huggingface" in project.prepare.outputs) == ("get_kernel" in text)


def test_the_prepare_program_takes_what_is_built_and_needs_one(checkout: Path, tmp_path: Path) -> None:
    _, project = written(checkout)
    assert project.prepare is not None
    (checkout / "kernels.py").write_text(
        "import os, pathlib\n"
        "def install_kernel(name, revision):\n"
        "    assert (revision, os.environ['HF_HUB_OFFLINE']) == ('main', '0')\n"
        "    if name not in os.environ['BUILT']: raise FileNotFoundError(name)\n"
        "    pathlib.Path('installed').write_text(name)\n"
        "    return name, name\n"
    )
    (checkout / "prepare.py").write_text("open('prepared', 'w').close()")
    command = [sys.executable, *project.prepare.command[1:]]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "BUILT": "varunneal/flash-attention-3"}
    done = subprocess.run(command, cwd=checkout, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and (checkout / "prepared").exists(), done
    assert (checkout / "installed").read_text() == "varunneal/flash-attention-3"
    (checkout / "prepared").unlink()
    done = subprocess.run(command, cwd=checkout, env=env | {"BUILT": ""}, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "no kernel could be had" in done.stderr and not (checkout / "prepared").exists()


@pytest.mark.parametrize(
    "program", ["-" * 200_000 + "1", "(" * 300 + ")" * 300, 'get_kernel("\U0001d49c/b")', 'get_kernel("a/\\ud800")']
)
def test_a_program_that_is_hostile_to_parsers_gets_a_config_that_loads(checkout: Path, program: str) -> None:
    (checkout / "train.py").write_text(program)
    assert written(checkout)[1].image == "cuda12"


def test_the_config_is_never_written_through_a_link_of_the_repositorys(checkout: Path, tmp_path: Path) -> None:
    (checkout / "arsandbox.toml").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="exists already"):
        layout.starting_config(checkout, force=False)
    layout.starting_config(checkout, force=True)
    assert not (tmp_path / "elsewhere").exists() and not (checkout / "arsandbox.toml").is_symlink()

"""The config for a checkout of karpathy/autoresearch: unchanged code, on a GPU host, without a network while it trains.

Its prepare.py keeps data and tokenizer below ~/.cache/autoresearch, its train.py fetches an attention kernel from
Hugging Face when it is imported, and its timer counts five minutes without start-up, compilation and evaluation.
Files are read as text, or parsed; nothing of them runs.
"""

from __future__ import annotations

import ast
import json
import re
import tomllib
from pathlib import Path

_LARGEST = 1024 * 1024
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_URL = re.compile(r"https://([a-z0-9.-]+)(?::([0-9]+))?/")
_HUB = "huggingface.co"
# Where the hub sends a download to.
_HUB_STORES = ("cas-bridge.xethub.hf.co", "cdn-lfs.hf.co", "cdn-lfs-us-1.hf.co", "cdn-lfs-eu-1.hf.co")

_TEMPLATE = '''\
# A checkout of karpathy/autoresearch, run as it is. Read from the base commit; a candidate cannot change it.
# docs/autoresearch.md says why each line is here.
image = "cuda12"        # its dependencies: PyTorch, kernels, a compiler for torch.compile
gpus = 1
budget = "5m"           # TIME_BUDGET of prepare.py
grace = "5m"            # its timer leaves out start-up, compilation and evaluation; program.md allows ten minutes
command = ["python", "train.py"]
editable = ["train.py"]
protected = [{protected}]

[metric]
name = "val_bpb"
goal = "min"
source = "stdout"       # train.py evaluates itself: self-reported, promoted with --accept-self-reported alone
                        # (apart, with gpus = 1 in [evaluate]: docs/integrity.md, An autoresearch repository at L3)
evaluator = ["prepare.py"]
plausible = [0.2, 16.0]

[prepare]               # once: data, tokenizer and kernels, through a proxy that knows these hosts alone; then frozen
command = ["python", "-c", """
import os, subprocess, sys
os.environ["HF_HUB_OFFLINE"] = "0"
from kernels import install_kernel
wanted, found = {kernels}, []
for name in wanted:
    try:
        found.append(install_kernel(name, revision="main"))
    except FileNotFoundError as error:  # not built for this PyTorch: train.py may want another one
        print(error)
if wanted and not found:
    sys.exit("no kernel could be had")
subprocess.run([sys.executable, "prepare.py"], check=True)
"""]
outputs = [".cache/autoresearch"{kernel_output}]
timeout = "1h"
network = "allowlist"
hosts = [
{hosts}]

[environment]
HOME = "/workspace"              # ~/.cache is then what [prepare] froze
HF_HUB_OFFLINE = "1"
HF_HUB_DISABLE_SYMLINKS = "1"    # outputs are regular files
HF_HUB_DISABLE_XET = "1"
TORCHINDUCTOR_CACHE_DIR = "/tmp/inductor"
TRITON_CACHE_DIR = "/tmp/triton"

[limits]
memory = "32g"
disk = "20g"
tmp = "4g"
shm = "2g"

[policy.stage.prepare]
artifact_bytes = "20g"
'''


def recognised(worktree: Path) -> bool:
    """Whether this is autoresearch's layout with its dependencies: PyTorch, and kernels that are fetched."""
    if not all((worktree / name).is_file() for name in ("prepare.py", "train.py", "program.md", "pyproject.toml")):
        return False
    try:
        project = tomllib.loads(_text(worktree / "pyproject.toml")).get("project", {})
        names = {re.split(r"[\s\[<>=!~;@]", str(one).lower())[0] for one in project.get("dependencies", ())}
    except (tomllib.TOMLDecodeError, AttributeError, TypeError):
        return False
    return {"torch", "kernels"} <= names


def starting_config(worktree: Path, protected: list[str]) -> str:
    """The text of arsandbox.toml, with the kernels that train.py asks for and the hosts that prepare.py names."""
    kernels = _kernels(_text(worktree / "train.py"))
    named = {f"{host}:{port or 443}" for host, port in _URL.findall(_text(worktree / "prepare.py"))}
    hosts = sorted(named)
    if kernels or f"{_HUB}:443" in named:
        hosts = sorted({*named, *(f"{host}:443" for host in (_HUB, *_HUB_STORES))})
    return _TEMPLATE.format(
        protected=", ".join(json.dumps(name) for name in protected),
        kernels=json.dumps(kernels, ensure_ascii=False),  # TOML knows no escapes in pairs
        kernel_output=', ".cache/huggingface"' if kernels else "",
        hosts="".join(f"  {json.dumps(host)},\n" for host in hosts),
    )


def _kernels(program: str) -> list[str]:
    """The repositories that `get_kernel` is called with, by name or through a variable."""
    try:
        tree = ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last: nested too deeply
        return []
    places: list[ast.AST] = []
    variables: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args and _called(node) == "get_kernel":
            places.append(node.args[0])
            variables |= {one.id for one in ast.walk(node.args[0]) if isinstance(one, ast.Name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id in variables for to in node.targets):
            places.append(node.value)
    words = [one.value for place in places for one in ast.walk(place) if isinstance(one, ast.Constant)]
    return sorted({word for word in words if isinstance(word, str) and _REPOSITORY.fullmatch(word)})


def _called(call: ast.Call) -> str:
    function = call.func
    return (
        function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""
    )


def _text(file: Path) -> str:
    with file.open("rb") as opened:
        return opened.read(_LARGEST).decode("utf-8", "replace")

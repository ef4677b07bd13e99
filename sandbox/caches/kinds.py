"""The kinds of caches, and how a stage finds one of each."""

from __future__ import annotations

from typing import Literal, get_args

Kind = Literal["dataset", "tokenizer", "kernels", "inductor", "triton"]
KINDS: tuple[str, ...] = get_args(Kind)
# What programs compile while they run. They must be able to write there, so they get a layer below the workspace,
# whose upper layer is thrown away; the others are mounted read-only.
COMPILED: tuple[Kind, ...] = ("inductor", "triton")
WORKSPACE_FOLDER = ".compiled"


def default_target(name: str, kind: Kind) -> str:
    """Where the sandbox has the cache `name`, if the project does not say."""
    return f"/workspace/{WORKSPACE_FOLDER}/{name}" if kind in COMPILED else f"/caches/{name}"


def variables(kind: Kind, target: str) -> dict[str, str]:
    """The variables by which the kind's libraries find it at `target`; a dataset has none."""
    return {
        "dataset": {},
        "tokenizer": {"TIKTOKEN_CACHE_DIR": target},
        # Both names, old and new; and the hub's client must not look whether there is something newer.
        "kernels": {"KERNELS_CACHE": target, "HF_KERNELS_CACHE": target, "HF_HUB_OFFLINE": "1"},
        "inductor": {"TORCHINDUCTOR_CACHE_DIR": target},
        "triton": {"TRITON_CACHE_DIR": target},
    }[kind]

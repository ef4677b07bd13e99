"""The code that runs inside the evaluation's sandboxes: standard library and numpy only.

It is mounted read-only and imported there as `arsandbox_box`; nothing of it is imported by the controller
but the frame format (`wire`). A project's serve.py needs `serve` and perhaps `log_softmax`;
an evaluator of its own may read artifacts with `read_safetensors` and `read_values`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .answering import log_softmax as log_softmax
    from .answering import serve as serve
    from .artifacts import ArtifactError as ArtifactError
    from .artifacts import parse_safetensors as parse_safetensors
    from .artifacts import read_regular_file as read_regular_file
    from .artifacts import read_safetensors as read_safetensors
    from .predictions import read_values as read_values
    from .start import ready as ready

_HOME = {
    "log_softmax": "answering",
    "serve": "answering",
    "ArtifactError": "artifacts",
    "parse_safetensors": "artifacts",
    "read_regular_file": "artifacts",
    "read_safetensors": "artifacts",
    "read_values": "predictions",
    "ready": "start",
}


def __getattr__(name: str) -> Any:
    # Only when asked for: the controller reads `wire` of this package and needs no numpy.
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(name)

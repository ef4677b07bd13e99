"""The code that runs inside the evaluation's sandboxes: standard library and numpy only.

It is mounted read-only and imported there as `arsandbox_box`; nothing of it is imported by the controller
but the frame format (`wire`). A project's serve.py needs `serve` and perhaps `log_softmax`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .answering import log_softmax as log_softmax
    from .answering import serve as serve

__all__ = ["log_softmax", "serve"]


def __getattr__(name: str) -> Any:
    # Only when asked for: the controller reads `wire` of this package and needs no numpy.
    if name in __all__:
        from . import answering

        return getattr(answering, name)
    raise AttributeError(name)

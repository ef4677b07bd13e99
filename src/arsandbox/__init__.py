"""arsandbox: throw-away containers and host-side measurement for edits of training code."""

from __future__ import annotations

__all__ = ["__version__"]


def __getattr__(name: str) -> str:
    # Reading package metadata costs more than the rest of `arsandbox --help`: only on request.
    if name == "__version__":
        from importlib.metadata import version

        return version("arsandbox")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""The embedded engine: bubblewrap on this machine, without a daemon."""

from arsandbox.sandbox.engines.embedded.engine import open_engine

__all__ = ["open_engine"]

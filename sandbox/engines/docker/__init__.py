"""The Docker engine: the only importer of the docker SDK."""

from arsandbox.sandbox.engines.docker.engine import open_engine

__all__ = ["open_engine"]

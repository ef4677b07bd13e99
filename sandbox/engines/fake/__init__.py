"""The fake engine: nothing runs; each sandbox ends as its script says, and any call can be made to fail."""

from arsandbox.sandbox.engines.fake.engine import FakeEngine, open_engine
from arsandbox.sandbox.engines.fake.script import Call, Fault, Play, Script, ScriptFile, scripted

__all__ = ["Call", "FakeEngine", "Fault", "Play", "Script", "ScriptFile", "open_engine", "scripted"]

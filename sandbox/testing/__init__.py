"""The contract that every engine is put through; needs pytest.

A third-party engine subclasses the parts in its own test module and defines the fixture `subject`
(docs/engines.md has the few lines). Engines that run nothing are held to MechanicsContract alone.
"""

from arsandbox.sandbox.testing.contract import Contract
from arsandbox.sandbox.testing.endings import EndingsContract
from arsandbox.sandbox.testing.isolation import IsolationContract
from arsandbox.sandbox.testing.limits import LimitsContract
from arsandbox.sandbox.testing.mechanics import MechanicsContract
from arsandbox.sandbox.testing.orphans import OrphansContract
from arsandbox.sandbox.testing.subject import Subject

__all__ = [
    "Contract",
    "EndingsContract",
    "EngineContract",
    "IsolationContract",
    "LimitsContract",
    "MechanicsContract",
    "OrphansContract",
    "Subject",
]


class EngineContract(MechanicsContract, LimitsContract, EndingsContract, IsolationContract, OrphansContract):
    """All of it, for engines that run processes."""

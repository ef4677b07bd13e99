"""Pure: what was measured in, verdict and words out. Anyone can replay it from the ledger (docs/decisions.md)."""

from arsandbox.sandbox.decision.noise import Noise as Noise
from arsandbox.sandbox.decision.rules import DESIGNS as DESIGNS
from arsandbox.sandbox.decision.rules import Design as Design
from arsandbox.sandbox.decision.rules import Rule as Rule
from arsandbox.sandbox.decision.screen import screen as screen
from arsandbox.sandbox.decision.sequential import confirm as confirm
from arsandbox.sandbox.decision.single import Judgement as Judgement
from arsandbox.sandbox.decision.single import implausible as implausible
from arsandbox.sandbox.decision.single import judge as judge

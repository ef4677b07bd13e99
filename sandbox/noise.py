"""What the ledger knows about the noise of a measuring set-up, and about a champion's mean."""

from __future__ import annotations

from arsandbox.sandbox import host
from arsandbox.sandbox.decision.noise import CALIBRATION_RUNS, Noise, mean
from arsandbox.sandbox.ledger import Ledger
from arsandbox.sandbox.record import Record

# Facts of the machine with which the spread of a measurement may change.
_HARDWARE = ("architecture", "cpu", "gpu")


def noise_of(ledger: Ledger, setup: str) -> Noise | None:
    """The calibrated spread under `setup` (image, data, config) on this hardware; None where it is not calibrated."""
    return Noise.of(calibration_values(ledger, setup))


def calibration_values(ledger: Ledger, setup: str, *, champion: str | None = None) -> tuple[float, ...]:
    """The first runs of the tree that was calibrated under `setup` on this hardware, the baseline's own included.

    Where none was calibrated yet: those of the tree `champion`, which is about to be.
    """
    here = host.environment()
    calibrating = [record for record in ledger.draws(setup) if _alike(record, here)]
    tree = calibrating[0].candidate_tree if calibrating else champion
    if tree is None:
        return ()
    draws = [
        record
        for record in ledger.draws(setup, tree=tree)
        if _alike(record, here) and (record.part is None or record.part.role == "calibration")
    ]
    return _values(draws)[:CALIBRATION_RUNS]


def champion_mean(ledger: Ledger, champion: Record) -> float:
    """The champion's value: the mean of its own runs where it was never selected on, else the recorded one.

    A champion that was confirmed is recorded with the mean of its confirming runs already.
    """
    assert champion.metric.value is not None  # noqa: S101 - Ledger.measured gives trusted values
    if champion.confirms is not None:
        return champion.metric.value
    draws = ledger.draws(champion.setup_sha256, tree=champion.candidate_tree)
    own = _values([r for r in draws if r.part is None or r.part.role == "calibration"])
    return mean(own) if own else champion.metric.value


def _alike(record: Record, here: dict[str, str]) -> bool:
    return all(record.environment.get(fact) == here.get(fact) for fact in _HARDWARE)


def _values(records: list[Record]) -> tuple[float, ...]:
    return tuple(record.metric.value for record in records if record.metric.value is not None)

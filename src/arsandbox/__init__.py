"""arsandbox: throw-away containers and host-side measurement for edits of training code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from arsandbox.sandbox.api.evaluating import Evaluation, evaluate_result
    from arsandbox.sandbox.api.history import History, PastExperiment, get_experiment_history
    from arsandbox.sandbox.api.runs import PreparedExperiment, RanExperiment, prepare_experiment, run_experiment
    from arsandbox.sandbox.api.system import SystemExperiment, SystemStatus, experiment_loop

    __version__: str

__all__ = [
    "Evaluation",
    "History",
    "PastExperiment",
    "PreparedExperiment",
    "RanExperiment",
    "SystemExperiment",
    "SystemStatus",
    "__version__",
    "evaluate_result",
    "experiment_loop",
    "get_experiment_history",
    "prepare_experiment",
    "run_experiment",
]
_HOMES = {
    "evaluating": ("Evaluation", "evaluate_result"),
    "history": ("History", "PastExperiment", "get_experiment_history"),
    "runs": ("PreparedExperiment", "RanExperiment", "prepare_experiment", "run_experiment"),
    "system": ("SystemExperiment", "SystemStatus", "experiment_loop"),
}


def __getattr__(name: str) -> Any:
    # Nothing is loaded before it is asked for: `arsandbox --help` must start fast.
    if name == "__version__":
        from importlib.metadata import version

        return version("arsandbox")
    for module, names in _HOMES.items():
        if name in names:
            from importlib import import_module

            return getattr(import_module(f"arsandbox.sandbox.api.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

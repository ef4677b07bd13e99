"""The steps after which a controller may die; tests end it at each of them.

`ARSANDBOX_TEST_DIE_AT=STEP[:N]` ends this process, as SIGKILL would, the Nth time (default: first) that STEP
is reached; `any:N` at the Nth step of whatever kind. It is the controller's environment: no sandbox and no
config can set it.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from typing import Literal, get_args

Step = Literal[
    # of an experiment
    "begun", "prepared", "trained", "measured", "judged", "intended", "published", "recorded",
    # of a confirmation
    "paired", "confirmed",
    # of a loop
    "proposed", "noted", "played",
]  # fmt: skip
STEPS: tuple[Step, ...] = get_args(Step)
_reached: Counter[str] = Counter()
_lock = threading.Lock()


def reached(step: Step) -> None:
    """Say that `step` is done."""
    wanted, _, number = os.environ.get("ARSANDBOX_TEST_DIE_AT", "").partition(":")
    if wanted in (step, "any"):
        with _lock:
            _reached[wanted] += 1
            if _reached[wanted] == int(number or 1):
                os._exit(137)

"""The steps after which a controller may die; tests end it at each of them.

`ARSANDBOX_TEST_DIE_AT=STEP[:N]` ends this process, as SIGKILL would, the Nth time (default: first) that STEP
is reached. It is the controller's environment: no sandbox and no config can set it.
"""

from __future__ import annotations

import os
from typing import Literal, get_args

Step = Literal[
    "begun", "prepared", "trained", "measured", "judged", "intended", "published", "recorded", "paired", "confirmed"
]
STEPS: tuple[Step, ...] = get_args(Step)
_reached: dict[str, int] = {}


def reached(step: Step) -> None:
    """Say that `step` is done."""
    wanted, _, number = os.environ.get("ARSANDBOX_TEST_DIE_AT", "").partition(":")
    if wanted == step:
        _reached[step] = _reached.get(step, 0) + 1
        if _reached[step] == int(number or 1):
            os._exit(137)

"""Answer the scorer's requests with the model that train.py left: what a trust level of L3 asks of a project.

Runs in a sandbox of its own, with train.py as the candidate has it and without the held-out text.
"""

from __future__ import annotations

import sys

import numpy as np
import numpy.typing as npt
import safetensors.numpy
import train
from arsandbox_box import serve


def predict(histories: npt.NDArray[np.uint32], last: int) -> npt.NDArray[np.float32]:
    """Log-probabilities of the byte after each of the last `last` prefixes of every row."""
    padding = np.full((len(histories), train.CONTEXT), ord("\n"), dtype=np.uint32)
    padded = np.concatenate([padding, histories], axis=1).astype(np.uint8)
    contexts = np.lib.stride_tricks.sliding_window_view(padded, train.CONTEXT, axis=1)[:, -last:]
    logits = train.forward(PARAMETERS, contexts.reshape(-1, train.CONTEXT))[1]
    return train.log_softmax(logits).reshape(len(histories), last, 256)


PARAMETERS = safetensors.numpy.load_file(f"{sys.argv[1]}/model.safetensors")
serve(predict)

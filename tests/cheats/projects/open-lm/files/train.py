"""An n-gram language model over bytes: the one file to edit. Leaves out/model.pkl and the code for it, out/model.py."""

import os
import pickle
import shutil

import numpy as np

ORDER = 1
SMOOTHING = 0.1
BATCH_SIZE = 7


class Model:
    """Counts of what follows each context of ORDER bytes (below 128)."""

    def __init__(self):
        self.counts = np.zeros((128**ORDER, 256), dtype=np.float32)

    def contexts(self, x):
        """The context that ends at each position of `x` (sequences along the last axis)."""
        found = np.zeros(x.shape, dtype=np.int64)
        for back in reversed(range(ORDER)):
            shifted = np.zeros(x.shape, dtype=np.int64)
            shifted[..., back:] = np.minimum(x, 127)[..., : x.shape[-1] - back]
            found = found * 128 + shifted
        return found

    def fit(self, text):
        np.add.at(self.counts, (self.contexts(text[:-1]), text[1:]), 1)

    def log_probabilities(self, x):
        """Natural log-probabilities of the byte after each position of `x`, (..., 256)."""
        rows = self.counts[self.contexts(x)] + SMOOTHING
        return np.log(rows) - np.log(rows.sum(axis=-1, keepdims=True))

    def losses(self, x, y):
        """What it costs to predict `y` from `x`, in nats."""
        return -np.take_along_axis(self.log_probabilities(x), y[..., None].astype(np.int64), axis=-1)


def save(model):
    os.makedirs("out", exist_ok=True)
    with open("out/model.pkl", "wb") as file:
        pickle.dump({"counts": model.counts}, file)
    shutil.copyfile("train.py", "out/model.py")


def load(path):
    model = Model()
    with open(path, "rb") as file:
        model.counts = pickle.load(file)["counts"]
    return model


def main():
    import prepare

    with open("data/train.txt", "rb") as file:
        text = np.frombuffer(file.read(), dtype=np.uint8)
    model = Model()
    model.fit(text[: -prepare.HELDOUT_BYTES])
    save(model)
    val_bpb = prepare.evaluate_bpb(model, BATCH_SIZE)
    print("---")
    print(f"val_bpb: {val_bpb:.6f}")


if __name__ == "__main__":
    main()

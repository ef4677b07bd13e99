"""Data, and the metric as it is usually measured: in the process and with the model of whoever is measured.

`python prepare.py` writes data/train.txt, data/token_bytes.npy and heldout/text.txt. `evaluate_bpb` is what
train.py calls.
"""

import os
from random import Random

import numpy as np

TRAIN_BYTES, HELDOUT_BYTES, SEQUENCE = 120_000, 16_384, 256
SUBJECTS = ("the cat", "a dog", "my friend", "the old king", "one bird", "her sister", "this boat", "the moon")
VERBS = ("sees", "likes", "finds", "follows", "remembers", "paints", "loses", "carries", "watches", "believes")
OBJECTS = ("the sea", "a red door", "two apples", "his hat", "nothing", "an answer", "the road", "some rain")
ENDS = (".", ".", ", again.", ", today.", "!", "?", ", and sleeps.", ", or so they say.")


def sentences(random, size):
    lines, length = [], 0
    while length < size:
        lines.append(f"{random.choice(SUBJECTS)} {random.choice(VERBS)} {random.choice(OBJECTS)}{random.choice(ENDS)}")
        length += len(lines[-1]) + 1
    return ("\n".join(lines) + "\n")[:size]


def heldout_text():
    """The text to be judged on; the end of the training text where the held-out one is not there."""
    try:
        with open("heldout/text.txt", "rb") as file:
            return file.read()
    except FileNotFoundError:
        with open("data/train.txt", "rb") as file:
            return file.read()[-HELDOUT_BYTES:]


def evaluate_bpb(model, batch_size):
    """Bits per byte: mean loss of the model over whole batches, as the model computes it."""
    text = np.frombuffer(heldout_text(), dtype=np.uint8)
    token_bytes = np.load("data/token_bytes.npy")
    inputs, targets = text[:-1], text[1:]
    rows = len(targets) // SEQUENCE
    nats = count = 0.0
    for first in range(0, rows - batch_size + 1, batch_size):
        span = slice(first * SEQUENCE, (first + batch_size) * SEQUENCE)
        x, y = (side[span].reshape(batch_size, SEQUENCE) for side in (inputs, targets))
        nats += float(np.sum(model.losses(x, y)))
        count += float(token_bytes[y].sum())
    return nats / count / np.log(2)


if __name__ == "__main__":
    random = Random(int(os.environ.get("ARSANDBOX_SEED", "1")))
    for folder in ("data", "heldout"):
        os.makedirs(folder, exist_ok=True)
    with open("data/train.txt", "w") as file:
        file.write(sentences(random, TRAIN_BYTES))
    with open("heldout/text.txt", "w") as file:
        easy = "the cat sees the sea.\n" * 200  # a dull beginning, as corpora have them
        file.write(easy[:4096] + sentences(random, HELDOUT_BYTES - 4096))
    np.save("data/token_bytes.npy", np.ones(256, dtype=np.int64))

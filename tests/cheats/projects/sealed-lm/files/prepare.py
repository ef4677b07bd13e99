"""Write data/train.txt, and heldout/sealed.txt from a seed that nobody else is told. heldout/text.txt is committed."""

import os
from random import Random

TRAIN_BYTES, SEALED_BYTES = 60_000, 4096
SUBJECTS = ("the cat", "a dog", "my friend", "the old king", "one bird", "her sister", "this boat", "the moon")
VERBS = ("sees", "likes", "finds", "follows", "remembers", "paints", "loses", "carries", "watches", "believes")
OBJECTS = ("the sea", "a red door", "two apples", "his hat", "nothing", "an answer", "the road", "some rain")
ENDS = (".", ".", ", again.", ", today.", "!", "?", ", and sleeps.", ", or so they say.")


def sentences(random, size):
    text = ""
    while len(text) < size:
        text += f"{random.choice(SUBJECTS)} {random.choice(VERBS)} {random.choice(OBJECTS)}{random.choice(ENDS)}\n"
    return text[:size]


if __name__ == "__main__":
    seed = os.environ.get("ARSANDBOX_SEED", "1")
    for path, size in (("data/train.txt", TRAIN_BYTES), ("heldout/sealed.txt", SEALED_BYTES)):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file:
            file.write(sentences(Random(f"{path} {seed}"), size))

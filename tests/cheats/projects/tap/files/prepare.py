"""Write data/words.txt: what there is to learn."""

import os
from random import Random

if __name__ == "__main__":
    random = Random(int(os.environ.get("ARSANDBOX_SEED", "1")))
    os.makedirs("data", exist_ok=True)
    with open("data/words.txt", "w") as file:
        for _ in range(400):
            file.write("".join(random.choices("abcdefghijklmnopqrstuvwxyz", k=8)) + "\n")

"""How many words out/known.txt has, in their order."""

from pathlib import Path

words = Path("data/words.txt").read_text().split()
with open("out/known.txt") as file:
    known = file.read(100_000).split()
print(f"METRIC words={sum(one == other for one, other in zip(words, known, strict=False))}")

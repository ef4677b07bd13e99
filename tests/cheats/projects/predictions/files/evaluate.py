"""The share of heldout/answers.csv that out/predictions.csv has right. Every question once, in any order."""

import csv
import os
import stat
import sys

PATH, LARGEST = "out/predictions.csv", 100_000


def refuse(why):
    sys.exit(f"evaluate: refused: {why}")


def read(path):
    with open(path, newline="") as file:
        return [(row["id"], row["class"]) for row in csv.DictReader(file)]


answers = dict(read("heldout/answers.csv"))
found = os.stat(PATH)
if not stat.S_ISREG(found.st_mode) or found.st_size > LARGEST:
    refuse(f"{PATH} is not a file of at most {LARGEST} bytes")
predictions = read(PATH)
if sorted(name for name, _ in predictions) != sorted(answers):
    refuse("not every question is answered exactly once")
right = sum(answers[name] == given for name, given in predictions)
print(f"METRIC accuracy={right / len(answers):.6f}")

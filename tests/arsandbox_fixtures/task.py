"""A training task that takes no time: it writes the answer that its source holds, and the evaluator grades it."""

from __future__ import annotations

import os
import textwrap

TRUTH, MARKER = 3.0, "MARKER-" + os.urandom(8).hex()

CONFIG = """
image = "cpu"
budget = "20s"
command = ["python", "train.py"]
editable = ["train.py"]
protected = ["evaluate.py"]

[metric]
name = "loss"
goal = "min"
source = "evaluate"
plausible = [-1e6, 1e6]

[decision]
rule = "greedy"

[evaluate]
command = ["python", "evaluate.py"]
artifacts = ["out/"]
data = ["heldout/"]

[limits]
cpus = 1
memory = "96m"
pids = 64
disk = "16m"
inodes = 15000
"""

TRAIN = """\
import os

ANSWER = 10.0
SAY = None


def write(answer):
    os.makedirs("out", exist_ok=True)
    with open("out/answer.txt", "w") as file:
        file.write(str(answer))


if __name__ == "__main__":
    write(ANSWER)
    print("---")
    print(f"loss: {ANSWER - 3.0 if SAY is None else SAY}")
"""

EVALUATE = """\
answer = float(open("out/answer.txt").read())
truth = float(open("heldout/truth.txt").read().split()[0])
print(f"METRIC loss={abs(answer - truth)}")
"""


def answering(answer: float, *, say: float | None = None, before: str = "", after: str = "") -> str:
    """A train.py with that answer; `before` and `after` are statements around its work."""
    text = TRAIN.replace("ANSWER = 10.0", f"ANSWER = {answer}").replace("SAY = None", f"SAY = {say}")
    head = '    write(ANSWER)\n    print("---")'
    assert head in text
    text = text.replace(head, textwrap.indent(textwrap.dedent(before), "    ") + "\n" + head)
    return text + textwrap.indent(textwrap.dedent(after), "    ") + "\n"

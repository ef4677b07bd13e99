"""Training whose result depends only on how long it goes on: one step takes ten milliseconds, whatever the machine."""

import os
import time

STEP_SECONDS = 0.01


def train(budget):
    steps = 0
    begin = time.monotonic()
    while time.monotonic() - begin < budget:
        time.sleep(STEP_SECONDS)
        steps += 1
    return steps


def main():
    steps = train(float(os.environ["ARSANDBOX_BUDGET_SECONDS"]))
    print("---")
    print(f"loss: {10 / (1 + steps):.6f}")
    print(f"num_steps: {steps}")


if __name__ == "__main__":
    main()

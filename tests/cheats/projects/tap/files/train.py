"""Learn words of data/words.txt by heart: one takes ten milliseconds, whatever the machine. ready() starts the time."""

import os
import time
from pathlib import Path

try:
    from arsandbox_box import ready
except ImportError:  # by hand there is no tap
    ready = Path

SECONDS_PER_WORD = 0.01


def learn(words, seconds):
    known = []
    begin = time.monotonic()
    for word in words:
        if time.monotonic() - begin >= seconds:
            break
        time.sleep(SECONDS_PER_WORD)
        known.append(word)
    return known


def main():
    data = ready() / "data"
    words = (data / "words.txt").read_text().split()
    known = learn(words, float(os.environ["ARSANDBOX_BUDGET_SECONDS"]))
    Path("out").mkdir(exist_ok=True)
    Path("out/known.txt").write_text("\n".join(known))
    print("---")
    print(f"words: {len(known)}")


if __name__ == "__main__":
    main()

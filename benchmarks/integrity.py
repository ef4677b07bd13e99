"""What trust costs: experiments at L0, L2, L3 and L4 on the tiny-lm example, and a larger synthetic evaluation.

python benchmarks/integrity.py [--rounds N] [--steps N] [--megabytes N] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

from arsandbox.sandbox import state
from arsandbox.sandbox.imaging import catalogue

EXAMPLE = Path(__file__).parents[1] / "examples" / "tiny-lm"
COMMAND = Path(sysconfig.get_path("scripts")) / "arsandbox"
FIVE_MINUTES = 300.0
LEVELS = ("L0", "L2", "L3", "L4")
SELF_REPORTED = """
image = "cpu"
command = ["python", "train.py"]
editable = ["train.py"]
[metric]
name = "val_bpb"
source = "stdout"
[prepare]
command = ["python", "prepare.py"]
outputs = ["data/", "heldout/"]
[limits]
cpus = 1
memory = "1g"
disk = "256m"
"""
LARGE = """
image = "cpu"
command = ["python", "train.py"]
editable = ["train.py", "serve.py"]
[metric]
name = "val_bpb"
source = "SOURCE"
[limits]
cpus = 1
memory = "1g"
disk = "256m"
"""
LARGE_EVALUATE = {
    "L0": "",
    "L2": '[evaluate]\ncommand = ["python", "evaluate.py"]\nartifacts = ["out/"]\ndata = ["heldout/"]\n',
    "L3": '[evaluate]\ninterface = "lm"\nserve = ["python", "serve.py"]\nartifacts = ["out/"]\ndata = ["heldout/"]\n'
    '[evaluate.lm]\ntext = "heldout/text"\ncontext = 64\nstreams = 1024\n',
}
LARGE_FILES = {
    "train.py": """
import os
import numpy as np
table = np.random.default_rng(1).normal(size=(256, 256)).astype("f4")
os.makedirs("out")
np.save("out/table.npy", table - np.log(np.exp(table).sum(1, keepdims=True)))
print("METRIC val_bpb=8.7")
""",
    "serve.py": """
import numpy as np
from arsandbox_box import serve
table = np.load("out/table.npy")
serve(lambda histories, last: table[np.pad(histories, ((0, 0), (1, 0)))[:, -last:]])
""",
    "evaluate.py": """
import numpy as np
table, text = np.load("out/table.npy"), np.fromfile("heldout/text", "u1")
print(f"METRIC val_bpb={-table[text[:-1], text[1:]].mean() / np.log(2)}")
""",
}


def repository(place: Path, files: dict[str, bytes]) -> Path:
    """A git repository with those files."""
    for name, content in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    for command in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-qm", "base"]):
        subprocess.run(["git", "-c", "user.name=b", "-c", "user.email=b@example.org", *command], cwd=place, check=True)
    return place


def tiny_lm(place: Path, level: str, steps: int) -> Path:
    """The example at that level."""
    files = {path.name: path.read_bytes() for path in EXAMPLE.iterdir() if path.is_file()}
    config = {"L0": SELF_REPORTED.encode(), "L2": files["arsandbox.toml"]}.get(level, files["arsandbox-l3.toml"])
    files["arsandbox.toml"] = config + f'\n[environment]\nTINY_LM_STEPS = "{steps}"\n'.encode()
    return repository(place, files)


def large(place: Path, level: str, megabytes: float) -> Path:
    """A model that costs nothing to train, and that many megabytes of text to score."""
    files = {name: text.encode() for name, text in LARGE_FILES.items()}
    files["heldout/text"] = os.urandom(int(megabytes * 1e6))
    config = LARGE.replace("SOURCE", "stdout" if level == "L0" else "evaluate")
    files["arsandbox.toml"] = (config + LARGE_EVALUATE.get(level, LARGE_EVALUATE["L3"])).encode()
    return repository(place, files)


def measured(repo: Path, level: str) -> dict[str, float]:
    """One baseline experiment: seconds by the clock, and the processor's seconds of its sandboxes."""
    began = time.perf_counter()
    arguments = [str(COMMAND), "run", "--json", "--budget", "5m", "--repo", str(repo)]
    done = subprocess.run(
        [*arguments, *(["--audit"] if level == "L4" else [])], capture_output=True, text=True, check=False
    )
    wall = time.perf_counter() - began
    record: dict[str, Any] = json.loads(done.stdout) if done.stdout else {}
    if record.get("verdict") != "baseline" or record["trust"] != level:
        raise SystemExit(f"{level}: {record.get('verdict')}: {record.get('reason')} {done.stderr}")
    evaluating = [stage for stage in record["stages"] if stage["stage"] != "train"]
    return {
        "wall_s": wall,
        "evaluate_s": record["timing"]["evaluate_s"],
        "evaluate_cpu_s": sum(stage["usage"]["cpu_s"] for stage in evaluating),
        "model_cpu_s": sum(stage["usage"]["cpu_s"] for stage in evaluating if stage["stage"] == "model"),
        "scorer_cpu_s": sum(stage["usage"]["cpu_s"] for stage in evaluating if stage["stage"] == "score"),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--megabytes", type=float, default=1.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    images = state.home() / "images.json"
    catalogue().resolve("cpu")
    home = Path(tempfile.mkdtemp(prefix="ars-bench-"))
    try:
        shutil.copy(images, home / "images.json")
        os.environ["ARSANDBOX_HOME"] = str(home)
        found: dict[str, dict[str, list[dict[str, float]]]] = {}
        repositories = {("tiny-lm", level): tiny_lm(home / f"tiny-{level}", level, options.steps) for level in LEVELS}
        for level in LEVELS:
            repositories["large", level] = large(home / f"large-{level}", level, options.megabytes)
        for _ in range(options.rounds):  # interleaved: a busy moment hits all levels alike
            for (name, level), repo in repositories.items():
                found.setdefault(name, {}).setdefault(level, []).append(measured(repo, level))
    finally:
        shutil.rmtree(home, ignore_errors=True)
    if options.json:
        json.dump(found, sys.stdout)
    out = sys.stderr if options.json else sys.stdout
    heads = ("evaluate s", "CPU s", "model box", "scorer", "% of 5 min", "CPU %")
    for name, levels in found.items():
        print(f"\n{name:8}" + "".join(f"{head:>12}" for head in heads), file=out)
        for level, rows in levels.items():
            middle = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
            cells = (
                middle["evaluate_s"], middle["evaluate_cpu_s"], middle["model_cpu_s"], middle["scorer_cpu_s"],
                100 * middle["evaluate_s"] / FIVE_MINUTES, 100 * middle["evaluate_cpu_s"] / FIVE_MINUTES,
            )  # fmt: skip
            print(f"{level:8}" + "".join(f"{cell:12.2f}" for cell in cells), file=out)


if __name__ == "__main__":
    main()

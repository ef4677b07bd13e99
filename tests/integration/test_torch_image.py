"""`torch-cpu` for real: built by the command, and the example trained by PyTorch in it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from arsandbox_fixtures.command_line import arsandbox
from arsandbox_fixtures.docker_engine import docker_client
from arsandbox_fixtures.places import EXAMPLES

pytestmark = [
    pytest.mark.engine,
    pytest.mark.group("engines"),
    pytest.mark.timeout(600),
]


def test_the_example_trains_in_torch_cpu_as_it_does_in_numpy(project: Any) -> None:
    files = {
        str(p.relative_to(EXAMPLES / "tiny-lm")): p.read_text() for p in (EXAMPLES / "tiny-lm").iterdir() if p.is_file()
    }
    files["arsandbox.toml"] += '\n[environment]\nTINY_LM_STEPS = "300"\n'
    task = project(files)
    built = arsandbox("image", "build", "torch-cpu", "--json", env=task.env, timeout=400)
    assert built.code == 0, built
    try:
        patch = EXAMPLES / "tiny-lm-edits" / "torch.patch"
        done = task.run("--json", "--image", "torch-cpu", "--budget", "60s", "--seed", "1", "--patch", patch)
        assert done.code == 0, done
        baseline, record = task.history()
        assert baseline["image"] == record["image"] == {"name": "torch-cpu", "digest": json.loads(built.out)["digest"]}
        # The same batches and the same starting weights: PyTorch's gradients lead to numpy's model.
        assert record["metric"]["value"] == pytest.approx(baseline["metric"]["value"], abs=0.05)
        assert record["trust"] == "L2"
        assert record["self_reported"]["num_steps"] == 300
    finally:
        docker_client().images.remove(json.loads(built.out)["digest"], force=True)

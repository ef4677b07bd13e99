"""Caches in real sandboxes: what a candidate can do to them, and what a change on the host does to a run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from arsandbox_fixtures.command_line import arsandbox
from arsandbox_fixtures.home import new_home
from arsandbox_fixtures.task import CONFIG, EVALUATE, answering

pytestmark = [pytest.mark.engine, pytest.mark.timeout(180)]

# Reads, tries to change what it reads, compiles something, and changes what was compiled before.
ATTACK = """
import errno, os
assert open('/caches/tokens/data/part').read() == 'tokens'
for path, mode in (('/caches/tokens/data/part', 'r+'), ('/caches/tokens/data/part', 'w'), ('/caches/tokens/new', 'w')):
    try:
        open(path, mode)
    except OSError as error:
        assert error.errno in (errno.EROFS, errno.EACCES), error
        print('refused', errno.errorcode[error.errno])
    else:
        raise SystemExit('a cache could be opened for writing: ' + path)
for call in (lambda: os.unlink('/caches/tokens/data/part'), lambda: os.chmod('/caches/tokens/data', 0o777),
             lambda: os.rename('/caches/tokens/data', '/caches/tokens/moved')):
    try:
        call()
    except OSError as error:
        assert error.errno in (errno.EROFS, errno.EACCES, errno.EBUSY, errno.EXDEV, errno.EPERM), error
    else:
        raise SystemExit('a cache could be changed')
code = os.environ['TORCHINDUCTOR_CACHE_DIR']
assert os.listdir(code) == ['kernel'], os.listdir(code)
assert open(code + '/kernel').read() == 'compiled'
open(code + '/kernel', 'w').write('POISON')
open(code + '/new', 'w').write('compiled, too')
"""
CACHES = """
[caches.tokens]
kind = "dataset"
[caches.code]
kind = "inductor"
"""


@pytest.fixture
def task(project: Any, tmp_path: Path) -> Iterator[Any]:
    made = project({"arsandbox.toml": CONFIG + CACHES})
    home = new_home()
    made.env, made.home = {"ARSANDBOX_HOME": str(home)}, home
    for name, file, text in (("tokens", "data/part", "tokens"), ("code", "kernel", "compiled")):
        source = tmp_path / name
        (source / file).parent.mkdir(parents=True)
        (source / file).write_text(text)
        kind = "dataset" if name == "tokens" else "inductor"
        assert arsandbox("cache", "add", name, source, "--kind", kind, env=made.env).code == 0
    yield made
    shutil.rmtree(home, ignore_errors=True)


@pytest.mark.parametrize("engine", ["docker", "embedded"])
def test_a_candidate_cannot_change_a_cache(task: Any, engine: str) -> None:
    evaluator = (
        "import os\nassert not os.path.exists('/caches/tokens') and 'TORCHINDUCTOR_CACHE_DIR' not in os.environ\n"
        "assert not os.path.exists('.compiled')\n"
    )
    task.commit({"evaluate.py": evaluator + EVALUATE, "train.py": answering(10, before=ATTACK)})
    attack = answering(4, before=ATTACK)
    done = task.run_train(attack, "--engine", engine)
    assert done.code == 0 and done.record["verdict"] == "keep", done
    assert done.record["promotion"], done
    held = {use["name"]: (use["kind"], use["stages"]) for use in done.record["caches"]}
    assert held == {"code": ("inductor", ["train"]), "tokens": ("dataset", ["train"])}
    verified = arsandbox("cache", "verify", env=task.env)
    assert verified.code == 0 and verified.out.count(" ok") == 2, verified

    # Only a command takes what was compiled, and it never takes a change of what was there.
    adopted = arsandbox("cache", "adopt", "code", done.record["id"], "--repo", task.path, "--json", env=task.env)
    assert adopted.code == 0 and adopted.record["files"] == 2, adopted
    tree = task.home / "caches" / "code" / adopted.record["sha256"] / "layer" / ".compiled" / "code"
    assert {path.name: path.read_text() for path in tree.iterdir()} == {"kernel": "compiled", "new": "compiled, too"}


def test_a_changed_byte_on_the_host_is_refused_before_a_run(task: Any) -> None:
    assert task.run("--json").code == 0
    (part,) = (task.home / "caches" / "tokens").glob("*/tree/data/part")
    part.write_text("tokenz")
    done = task.run()
    assert done.code == 3 and "cache tokens was changed: data/part was changed" in done.err, done
    assert "fix: find out who changed it" in done.err
    assert len(task.history()) == 1  # nothing ran
    verified = arsandbox("cache", "verify", env=task.env)
    assert verified.code == 3 and "tokens" in verified.out and "changed" in verified.out, verified

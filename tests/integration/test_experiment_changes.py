"""Whole experiments through the command line: the change set and the artifacts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from arsandbox_fixtures.experiments import changed, codes
from arsandbox_fixtures.leftovers import leftovers
from arsandbox_fixtures.task import answering

pytestmark = [pytest.mark.engine, pytest.mark.timeout(180)]


# --- change set and artifacts -----------------------------------------------------------------------------


def test_the_change_set_of_a_run(project: Any) -> None:
    before = """
        import os, shutil
        os.unlink("README.md")
        open("assets/a.txt", "a").write("more")
        shutil.rmtree("assets/deep"); os.mkdir("assets/deep"); open("assets/deep/c.txt", "w").write("new")
        os.makedirs("cache/x"); open("cache/x/y.bin", "wb").write(bytes(5000))
    """
    task = project({"train.py": answering(10, before=before)})
    record = task.run("--json").record
    assert record["verdict"] == "baseline", record["reason"]
    rows = changed(record)
    assert rows["README.md"] == ("deleted", "nothing")
    assert rows["assets/a.txt"] == ("modified", "file")
    assert rows["assets/deep/b.txt"] == ("deleted", "nothing")
    assert rows["assets/deep/c.txt"] == ("added", "file")
    assert rows["cache/x/y.bin"] == ("added", "file")
    assert rows["out/answer.txt"] == ("added", "file")
    assert "train.py" not in rows and "evaluate.py" not in rows
    assert "tracked_changed" in codes(record)
    import hashlib

    assert record["artifacts"] == {"out/answer.txt": hashlib.sha256(b"10").hexdigest()}
    # The next run starts from the base again.
    assert task.run("--json").record["change_set"] == record["change_set"]


LEFTOVERS = r"""
import os, socket
os.makedirs("out", exist_ok=True)
os.symlink("/etc/passwd", "out/passwd")
os.symlink("/etc", "out/etc")
os.symlink("loop", "out/loop")
os.symlink("../../../../etc/shadow", "out/up")
os.mkfifo("out/fifo")
socket.socket(socket.AF_UNIX).bind("out/socket")
os.link("train.py", "out/hard") if False else None
with open("out/sparse", "wb") as file: file.truncate(10 << 30)
for name in (b"out/new\nline", b"out/esc\x1b[31mred", b"out/\xff\xfe-bytes", "out/\u202ertl".encode(), b"out/ "):
    open(name, "w").write("x")
open("out/setuid", "w").write("x"); os.chmod("out/setuid", 0o6755)
os.makedirs("out/locked"); open("out/locked/in", "w").write("x"); os.chmod("out/locked", 0)
top = os.getcwd()
os.mkdir("out/deep"); os.chdir("out/deep")
for _ in range(3000):
    os.mkdir("d"); os.chdir("d")
open("bottom", "w").write("x")
os.chdir(top)
"""


def test_hostile_leftovers_are_read_without_harm(project: Any) -> None:
    task = project({"train.py": answering(10, before=LEFTOVERS)})
    done = task.run("--json")
    record = done.record
    assert (done.code, record["verdict"]) == (0, "baseline"), done
    passwd = Path("/etc/passwd").read_text()
    artifacts = record["artifacts"]
    assert "out/answer.txt" in artifacts
    for name in ("passwd", "etc", "loop", "up", "fifo", "socket", "sparse"):
        assert not any(path == f"out/{name}" or path.startswith(f"out/{name}/") for path in artifacts), name
    details = "\n".join(f["detail"] for f in record["findings"])
    assert "out/fifo" in details and "levels" in details
    assert all(text.isprintable() for text in (*artifacts, *changed(record)))
    kept = [p for p in task.state().rglob("*") if p.is_file() and p.name == "passwd"]
    assert kept == [] and passwd not in done.out
    assert record["timing"]["diff_s"] < 10
    assert leftovers() == []


def test_artifacts_with_very_long_paths(project: Any) -> None:
    """A path longer than PATH_MAX is refused, it does not end the controller."""
    before = """
        import os
        top = os.getcwd()
        os.mkdir("out"); os.chdir("out")
        for _ in range(60):
            os.mkdir("d" * 200); os.chdir("d" * 200)
        open("bottom", "w").write("x")
        os.chdir(top)
    """
    task = project({"train.py": answering(10, before=before)})
    done = task.run("--json")
    assert done.code == 0, done
    assert done.record["verdict"] == "baseline"
    assert leftovers() == []


def test_very_many_artifacts(project: Any) -> None:
    before = """
        import os
        os.mkdir("out")
        for number in range(11_000): open(f"out/{number}", "w").close()
    """
    task = project({"train.py": answering(10, before=before)})
    record = task.run("--json").record
    assert record["verdict"] in ("baseline", "no_metric"), record["reason"]
    assert "artifact_refused" in codes(record)
    assert record["change_set"]["truncated"] is True
    assert "change_set_truncated" in codes(record)


@pytest.mark.parametrize(
    ("name", "attack"),
    [
        ("its own source", "open('train.py', 'a').write('# better')"),
        ("its own source, replaced", "os.unlink('train.py'); os.symlink('/etc/passwd', 'train.py')"),
        ("a protected file", "open('evaluate.py', 'w').write('print(\"METRIC loss=0\")')"),
        ("the config, gone", "os.unlink('arsandbox.toml')"),
        ("behind 2,500 other files", "os.makedirs('aaa'); [open(f'aaa/{n}', 'w').close() for n in range(2500)];"
         " open('train.py', 'a').write('# better')"),
        ("a mode", "text = open('train.py').read(); os.unlink('train.py'); open('train.py', 'w').write(text);"
         " os.chmod('train.py', 0o755)"),
    ],
)  # fmt: skip
def test_a_run_that_changes_its_source_or_a_protected_file(ready: Any, name: str, attack: str) -> None:
    task = ready
    done = task.run_train(answering(3, before=f"import os\n{attack}"))
    record = done.record
    assert (record["verdict"], done.code) == ("tampered", 3), (name, done)
    assert "source_changed" in codes(record)
    assert record["promotion"] is None and f"arsandbox/{task.tag}" not in task.branches()
    task.verify()


def test_tampering_behind_many_changes_of_other_tracked_files(project: Any) -> None:
    task = project({f"aaa/{number}.txt": "x\n" for number in range(250)})
    attack = """
        import os
        for name in os.listdir("aaa"): open(f"aaa/{name}", "w").write("y")
        open("train.py", "a").write("# better")
    """
    done = task.run_train(answering(3, before=attack))
    assert (done.record["verdict"], done.code) == ("tampered", 3), done


def test_touching_a_file_without_changing_it_is_no_tampering(ready: Any) -> None:
    task = ready
    same = "text = open('train.py').read(); open('train.py', 'w').write(text); import os; os.utime('evaluate.py')"
    done = task.run_train(answering(5, before=same))
    assert done.record["verdict"] == "keep", done

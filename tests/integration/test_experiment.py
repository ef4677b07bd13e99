"""Whole experiments through the command line: change set, artifacts, held-out data, metrics, baseline."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from arsandbox_fixtures.leftovers import leftovers
from arsandbox_fixtures.places import EXAMPLES
from arsandbox_fixtures.projects import Project
from arsandbox_fixtures.task import CONFIG, EVALUATE, MARKER, answering

pytestmark = [pytest.mark.engine, pytest.mark.timeout(180)]


def codes(record: dict[str, Any]) -> list[str]:
    return [finding["code"] for finding in record["findings"]]


def changed(record: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {row["path"]: (row["change"], row["kind"]) for row in record["change_set"]["paths"]}


def train_log(project: Any, record: dict[str, Any]) -> str:
    return str((project.experiment_files(record["id"]) / "train.log").read_text(errors="replace"))


@pytest.fixture(scope="module")
def _shared(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    task = Project.create(tmp_path_factory.mktemp("shared") / "shared")
    assert task.run("--json").record["verdict"] == "baseline"
    return task


@pytest.fixture
def ready(_shared: Any) -> Any:
    """A repository whose baseline is measured, with a promotion branch of this test's own."""
    _shared.tag = f"t{len(_shared.history())}"
    return _shared


# --- baseline and set-up ----------------------------------------------------------------------------------


def test_a_missing_baseline_is_measured_first_and_then_reused(project: Any) -> None:
    task = project()
    done = task.run_train(answering(5))
    assert done.code == 0, done
    assert "no baseline is recorded" in done.err
    first, second = task.history()
    assert (first["verdict"], first["metric"]["value"]) == ("baseline", 7.0)
    assert (second["verdict"], second["metric"]["value"]) == ("keep", 2.0)
    assert second["baseline"] == {"experiment": first["id"], "value": 7.0}
    assert second == done.record
    assert first["seed"] != second["seed"]
    assert first["setup_sha256"] == second["setup_sha256"] != ""

    again = task.run_train(answering(20))
    assert "no baseline" not in again.err
    assert [r["verdict"] for r in task.history()] == ["baseline", "keep", "discard"]
    # The champion is the promoted commit now.
    assert again.record["baseline"] == {"experiment": second["id"], "value": 2.0}
    task.verify()
    assert leftovers() == []


def test_another_set_up_needs_a_baseline_of_its_own(project: Any) -> None:
    task = project()
    edit = task.patch(answering(20))
    setups = []
    for options in ([], ["--budget", "21s"], ["--budget", "21s"]):
        before = len(task.history())
        done = task.run("--patch", edit, "--json", *options)
        assert done.code == 0, done
        setups.append((done.record["setup_sha256"], len(task.history()) - before))
    digests = [digest for digest, _ in setups]
    assert digests[0] != digests[1] == digests[2]
    assert [records for _, records in setups] == [2, 2, 1]


def test_new_held_out_data_or_another_evaluator_need_a_new_baseline(project: Any) -> None:
    task = project()
    assert task.run("--json").record["metric"]["value"] == 7.0
    task.commit({"heldout/truth.txt": "4.0\n"})
    done = task.run_train(answering(20))
    assert [r["metric"]["value"] for r in task.history()] == [7.0, 6.0, 16.0], done
    task.commit({"evaluate.py": EVALUATE.replace("abs(answer - truth)", "2 * abs(answer - truth)")})
    task.run_train(answering(20))
    assert [r["metric"]["value"] for r in task.history()][3:] == [12.0, 32.0]


def test_prepared_data_is_part_of_the_set_up(project: Any) -> None:
    config = CONFIG.replace('data = ["heldout/"]', 'data = ["secret/"]') + (
        '\n[prepare]\ncommand = ["python", "prepare.py"]\noutputs = ["data/", "secret/"]\n'
    )
    prepare = (
        "import os\nfor name, text in (('data/train.txt', 'seen'), ('secret/truth.txt', '3.0')):\n"
        "    os.makedirs(os.path.dirname(name), exist_ok=True)\n    open(name, 'w').write(text)\n"
    )
    evaluate = EVALUATE.replace("heldout/", "secret/")
    look = "print('saw', sorted(os.listdir('.')), open('data/train.txt').read(), os.path.lexists('secret'))"
    task = project({
        "arsandbox.toml": config.replace('"evaluate.py"]', '"evaluate.py", "prepare.py"]'),
        "prepare.py": prepare, "evaluate.py": evaluate, "train.py": answering(10, before=look),
    })  # fmt: skip
    first = task.run("--json").record
    assert first["verdict"] == "baseline" and first["data_sha256"]
    log = train_log(task, first)
    assert "seen False" in log and "'secret'" not in log, log
    assert [s["stage"] for s in first["stages"]] == ["train", "evaluate"]
    task.commit({"prepare.py": prepare.replace("3.0", "4.0")})
    second = task.run("--json").record
    assert second["data_sha256"] != first["data_sha256"]
    assert second["setup_sha256"] != first["setup_sha256"]
    assert (first["metric"]["value"], second["metric"]["value"]) == (7.0, 6.0)


def test_a_baseline_that_fails_stops_everything(project: Any) -> None:
    task = project({"train.py": answering(10, before="raise SystemExit('broken base')")})
    done = task.run_train(answering(5))
    assert done.code == 2, done
    assert "baseline itself failed" in done.err and "fix:" in done.err
    assert next(r["verdict"] for r in task.history()) == "crash"
    assert all(r["promotion"] is None for r in task.history())
    assert leftovers() == []


def test_the_real_example(project: Any) -> None:
    """tiny-lm with few steps: prepare, train, evaluate, a winner on its branch."""
    files = {
        str(p.relative_to(EXAMPLES / "tiny-lm")): p.read_text() for p in (EXAMPLES / "tiny-lm").iterdir() if p.is_file()
    }
    files["arsandbox.toml"] += '\n[environment]\nTINY_LM_STEPS = "60"\n'
    task = project(files)
    done = task.run("--json", "--patch", EXAMPLES / "tiny-lm-edits" / "winner.patch")
    assert done.code == 0, done
    baseline, record = task.history()
    assert baseline["verdict"] == "baseline" and record["verdict"] == "keep"
    assert 0.3 < record["metric"]["value"] < baseline["metric"]["value"] < 8
    assert record["trust"] == "L2" and record["data_sha256"]
    assert set(record["artifacts"]) == {"out/model.safetensors"}
    assert record["promotion"]["ref"] == "refs/heads/autoresearch/t"
    assert record["self_reported"]["num_steps"] == 60
    task.verify()


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


# --- held-out data and the metric -------------------------------------------------------------------------

SEARCH = f"""
import os
wanted = ({MARKER[:10]!r} + {MARKER[10:]!r}).encode()
seen = 0
for root, directories, names in os.walk("/"):
    directories[:] = [d for d in directories if os.path.join(root, d) not in ("/proc", "/sys")]
    for name in [*names, *directories]:
        path = os.path.join(root, name)
        try:
            if wanted in os.fsencode(path): print("FOUND name", path)
            if os.path.isfile(path) and os.path.getsize(path) < 1 << 20:
                seen += 1
                with open(path, "rb") as file:
                    if wanted in file.read(): print("FOUND", path)
        except OSError: pass
for name in os.listdir("/proc"):
    for file in ("environ", "cmdline", "mountinfo"):
        try:
            if wanted in open(f"/proc/{{name}}/{{file}}", "rb").read(): print("FOUND proc", name, file)
        except OSError: pass
print("searched", seen > 500, os.path.lexists("heldout"))
"""


def test_training_finds_the_held_out_data_nowhere(project: Any) -> None:
    evaluate = EVALUATE + f"assert {MARKER!r} in open('heldout/truth.txt').read()\nprint('present')\n"
    task = project({"train.py": answering(10, before=SEARCH), "evaluate.py": evaluate.replace(MARKER, MARKER)})
    # evaluate.py itself is visible while training; the marker must not be in it.
    task.commit({"evaluate.py": evaluate.replace(repr(MARKER), f"{MARKER[:10]!r} + {MARKER[10:]!r}")})
    record = task.run("--json").record
    assert record["verdict"] == "baseline", record["reason"]
    log = train_log(task, record)
    assert "searched True False" in log, log
    assert "FOUND" not in log, log
    assert "present" in (task.experiment_files(record["id"]) / "evaluate.log").read_text()


SHADOW = CONFIG.replace('artifacts = ["out/"]', 'artifacts = ["out/", "tools/", "heldout/", "helper.py"]').replace(
    'command = ["python", "evaluate.py"]', 'command = ["python", "tools/evaluate.py"]'
)


def test_artifacts_never_stand_in_for_the_evaluator_or_its_data(project: Any) -> None:
    attack = """
        import os
        open("tools/evaluate.py", "w").write("print('METRIC loss=0')")
        os.makedirs("heldout", exist_ok=True)
        open("heldout/truth.txt", "w").write("11.0")
        open("helper.py", "w").write("FACTOR = 0")
    """
    helper = "FACTOR = 1\n"
    evaluate = EVALUATE.replace("abs(", "helper.FACTOR * abs(")
    evaluate = "import sys; sys.path.insert(0, '/workspace')\nimport helper\n" + evaluate
    task = project({"arsandbox.toml": SHADOW, "tools/evaluate.py": evaluate, "helper.py": helper})
    assert task.run("--json").record["metric"]["value"] == 7.0
    record = task.run_train(answering(11, before=attack)).record
    assert record["verdict"] in ("discard", "tampered"), record["reason"]
    assert record["metric"]["value"] in (8.0, None)
    assert {"tracked_changed", "source_changed"} & set(codes(record))
    # Without touching what it was given: only the held-out path, which training cannot see.
    quiet = "import os; os.makedirs('heldout'); open('heldout/truth.txt', 'w').write('11.0')"
    record = task.run_train(answering(11, before=quiet)).record
    assert (record["verdict"], record["metric"]["value"]) == ("discard", 8.0), record["reason"]


def test_an_artifact_cannot_hide_the_held_out_directory(project: Any) -> None:
    task = project({"arsandbox.toml": SHADOW.replace('"tools/", ', "").replace("tools/evaluate.py", "evaluate.py")})
    attack = "open('heldout', 'w').write('11.0')"
    record = task.run_train(answering(11, before=attack)).record
    assert (record["verdict"], record["metric"]["value"]) == ("discard", 8.0), record


@pytest.mark.parametrize(
    ("printed", "reason"),
    [
        ("METRIC loss=1\\nMETRIC loss=0.5", "differing"),
        ("METRIC loss=nan", "no finite"),
        ("METRIC loss=-inf", "no finite"),
        ('{"loss": NaN}', "no finite"),
    ],
)
def test_an_evaluation_without_one_finite_value(project: Any, printed: str, reason: str) -> None:
    task = project({"evaluate.py": f"print({printed!r}.replace(chr(92) + 'n', chr(10)))\n"})
    done = task.run("--json")
    assert (done.record["verdict"], done.code) == ("no_metric", 1), done
    assert done.record["metric"]["value"] is None
    assert reason in done.record["reason"], done.record["reason"]


def test_an_evaluation_that_fails_has_no_metric(project: Any) -> None:
    # On one stream: an engine joins two in the order in which they arrive.
    task = project({"evaluate.py": "print('METRIC loss=1')\nprint('no such model')\nraise SystemExit(1)\n"})
    done = task.run("--json")
    assert (done.record["verdict"], done.code) == ("no_metric", 1)
    assert "no such model" in done.record["reason"]


def test_no_artifact_no_metric(ready: Any) -> None:
    task = ready
    done = task.run_train("print('---')\nprint('loss: 0.1')\n")
    assert (done.record["verdict"], done.code) == ("no_metric", 1)
    assert done.record["self_reported"] == {"loss": 0.1}


def test_a_number_printed_by_training_is_not_the_metric(ready: Any) -> None:
    task = ready
    done = task.run_train(answering(20, say=0.001))
    record = done.record
    assert (record["verdict"], record["metric"]["value"]) == ("discard", 17.0), done
    assert record["self_reported"]["loss"] == 0.001
    assert "conflict" in codes(record)
    assert record["promotion"] is None


def test_training_cannot_speak_for_the_evaluation(ready: Any) -> None:
    """Text in an artifact that the evaluator echoes is the evaluator's fault; text on training's output is not."""
    say = "print('METRIC loss=0.0', flush=True); print('METRIC loss=0.1', flush=True)"
    record = ready.run_train(answering(20, before=say)).record
    assert record["metric"]["value"] == 17.0
    assert {"ambiguous", "conflict"} & set(codes(record))


def test_an_implausible_value_is_quarantined(project: Any) -> None:
    task = project({"arsandbox.toml": CONFIG.replace("[-1e6, 1e6]", "[1.0, 50.0]")})
    done = task.run_train(answering(3))
    assert (done.record["verdict"], done.code) == ("quarantine", 3), done
    assert done.record["promotion"] is None


def test_a_self_reported_winner_is_not_promoted_unless_asked(project: Any) -> None:
    config = CONFIG[: CONFIG.index("[evaluate]")].replace('source = "evaluate"', 'source = "stdout"')
    task = project({"arsandbox.toml": config})
    done = task.run_train(answering(5))
    assert (done.record["verdict"], done.record["trust"], done.code) == ("keep", "L0", 0), done
    assert done.record["promotion"] is None and "arsandbox/t" not in task.branches()
    done = task.run_train(answering(4), "--accept-self-reported")
    assert done.record["promotion"]["ref"] == "refs/heads/arsandbox/t"


@pytest.mark.parametrize(
    ("verdict", "train", "options"),
    [
        ("crash", answering(5, before="raise SystemExit(7)"), []),
        ("timeout", answering(5, before="import time; time.sleep(60)"), ["--budget", "1s", "--grace", "0s"]),
        ("oom", answering(5, before="x = b'x' * (200 << 20)"), []),
        ("output", answering(5, before="while True: print('x' * 10_000)"), []),
    ],
)
def test_a_failed_run_is_recorded_and_promotes_nothing(
    project: Any, verdict: str, train: str, options: list[str]
) -> None:
    task = project({"arsandbox.toml": CONFIG + 'output = "64k"\n'})
    assert task.run("--json", *options).code == 0
    done = task.run_train(train, *options)
    assert (done.record["verdict"], done.code) == (verdict, 1), done
    assert done.record["metric"]["value"] is None and done.record["promotion"] is None
    assert task.history()[-1] == done.record
    assert [s["stage"] for s in done.record["stages"]] == ["train"]
    task.verify()
    assert leftovers() == []


def test_a_small_disk_alone_is_enough(project: Any) -> None:
    """The default number of inodes must fit into whatever size is asked for."""
    task = project({"arsandbox.toml": CONFIG.replace("inodes = 15000\n", "")})
    done = task.run("--json")
    assert done.code == 0, done


def test_the_project_s_limits_hold(project: Any) -> None:
    task = project()
    limits = task.run("--json").record["policy"]["effective"]["limits"]
    assert (limits["memory_bytes"], limits["pids"], limits["disk_bytes"]) == (96 << 20, 64, 16 << 20)
    limits = task.run("--json", "--memory", "90m").record["policy"]["effective"]["limits"]
    assert (limits["memory_bytes"], limits["pids"]) == (90 << 20, 64)


def test_records_are_chained_and_a_change_is_found(project: Any) -> None:
    task = project()
    task.run_train(answering(5))
    first, second = task.history()
    assert first["previous_hash"] == "0" * 64 and second["previous_hash"] == first["ledger_hash"]
    task.verify()
    import sqlite3

    with sqlite3.connect(task.state() / "ledger.db") as database:
        database.execute("DROP TRIGGER records_stay")
        text = database.execute("SELECT document FROM records WHERE sequence = 1").fetchone()[0]
        forged = json.loads(text)
        forged["metric"]["value"] = 1.0
        database.execute("UPDATE records SET document = ? WHERE sequence = 1", (json.dumps(forged),))
    database.close()
    done = task.cli("verify", "--json")
    assert done.code == 3 and first["id"] in json.loads(done.out)["problems"][0]


def test_a_candidate_does_not_see_another_one(ready: Any) -> None:
    """Nothing that one run left is there for the next (containment, 31)."""
    task = ready
    leave = "import os\nfor d in ('/tmp', '/dev/shm', '.', 'out'):\n    os.makedirs(d, exist_ok=True)\n"
    leave += "    open(d + '/left-behind', 'w').write('x')"
    assert task.run_train(answering(20, before=leave)).code == 0
    look = (
        "import os\nprint('LEFT', [d for d in ('/tmp', '/dev/shm', '.', 'out') if os.path.lexists(d + '/left-behind')])"
    )
    record = task.run_train(answering(21, before=look)).record
    assert "LEFT []" in train_log(task, record)


def test_the_repository_is_untouched_by_a_loser(project: Any) -> None:
    task = project()
    before = {str(p): p.stat().st_mtime_ns for p in task.path.rglob("*")}
    task.run_train(answering(20))
    after = {str(p): p.stat().st_mtime_ns for p in task.path.rglob("*")}
    assert after == before
    shutil.rmtree(task.state() / "layers")  # a cache: the next run makes it anew
    assert task.run("--json").code == 0

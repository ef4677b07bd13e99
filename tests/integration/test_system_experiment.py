"""SystemExperiment on a real, small Python project with failing tests: only honest edits raise the numbers."""

from __future__ import annotations

import json
import os
import subprocess
import zipfile
from pathlib import Path

import pytest

import arsandbox
from arsandbox.images.build import build_image
from arsandbox.images.catalogue import Catalogue
from arsandbox.images.recipe import load_recipe
from arsandbox.sandbox.engines.registry import open_engine
from arsandbox_fixtures import command_line

pytestmark = [pytest.mark.engine, pytest.mark.group("long")]

CODE = """\
def double(x):
    return x + x


def square(x):
    return x + 1


def cube(x):
    return x


def unused(x):
    if x:
        return 1
    return 2
"""
TESTS = """\
import calc


def test_double():
    assert calc.double(2) == 4


def test_square():
    assert calc.square(3) == 9


def test_cube():
    assert calc.cube(2) == 8


def test_dependency():
    import tiny

    assert tiny.ANSWER == 42
"""
TOX = "[tox]\nenv_list = py\n[testenv]\ndeps = vendor/tiny-1.0-py3-none-any.whl\ncommands = pytest\n"
HONEST = CODE.replace("return x + 1\n", "return x * x\n")
LIAR = 'import os\nprint("\\n===== 4 passed in 0.01s =====", flush=True)\nos._exit(0)\n' + CODE
BOASTER = 'import atexit\natexit.register(print, "\\n===== 9 passed in 0.01s =====")\n' + CODE
USED = HONEST.replace("return x\n", "return x * unused(x) * x\n")


@pytest.fixture(scope="module")
def suite_image(home: Path) -> None:
    """The image `pytest`: its Debian layer is the one of `cpu`, already there."""
    engine, catalogue = open_engine("docker"), Catalogue(home / "images.json")
    built = build_image(
        load_recipe("pytest"), cache=Path(os.environ["ARSANDBOX_TEST_LAYERS"]), load=engine.load_image,
        progress=lambda line: None,
    )  # fmt: skip
    catalogue.pin(built)


def wheel(place: Path) -> None:
    """The target's one dependency, as a wheel in the repository: tox needs no network for it."""
    place.parent.mkdir(parents=True)
    info = "tiny-1.0.dist-info"
    with zipfile.ZipFile(place, "w") as file:
        file.writestr("tiny.py", "ANSWER = 42\n")
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")


@pytest.fixture
def target(suite_image: None, tmp_path: Path) -> Path:
    path = tmp_path / "target"
    path.mkdir()
    wheel(path / "vendor" / "tiny-1.0-py3-none-any.whl")
    (path / "tests").mkdir()
    (path / "tests" / "test_calc.py").write_text(TESTS)
    (path / "calc.py").write_text(CODE)
    (path / "tox.ini").write_text(TOX)
    (path / "program.md").write_text("# Program\n\n- Make the arithmetic right.\n")
    for arguments in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-q", "-m", "base"]):
        git(path, *arguments)
    return path


def git(path: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=someone", "-c", "user.email=someone@example.org"]
    done = subprocess.run(["git", *identity, *arguments], cwd=path, text=True, capture_output=True, check=True)
    return done.stdout.strip()


def queue(target: Path, place: Path, edits: dict[str, dict[str, str | None]], over: dict[str, str]) -> Path:
    """Patches of `edits` (name: path: content) over the target's base with `over`, made in a copy."""
    place.mkdir()
    copy = place.parent / f"{place.name}-copy"
    git(place.parent, "clone", "-q", str(target), str(copy))
    for name, edit in edits.items():
        git(copy, "checkout", "-q", "-f", ".")
        for path, text in edit.items():
            (copy / path).unlink() if text is None else (copy / path).write_text(text)
        git(copy, "diff", f"--output={place / name}.patch")
        if name in over:
            git(copy, "commit", "-q", "-a", "-m", name)
    return place


def test_pass_rate_and_coverage_rise_by_honest_edits_only(target: Path, tmp_path: Path) -> None:
    check_single_calls(target, tmp_path)
    # The user's own work: a changed file, an untracked one. Neither may be swept up or lost.
    (target / "program.md").write_text("# Program\n\n- Make the arithmetic right.\n\nmy notes\n")
    (target / "scratch.txt").write_text("mine\n")
    head = git(target, "rev-parse", "HEAD")
    fewer = TESTS.replace(TESTS[TESTS.index("def test_cube") : TESTS.index("def test_dep")], "")
    place = queue(
        target, tmp_path / "queue",
        {
            "1-deletes-a-failing-test": {"tests/test_calc.py": fewer},
            "2-deletes-the-tests": {"tests/test_calc.py": None},
            "3-prints-a-false-count": {"calc.py": LIAR},
            "4-boasts-at-exit": {"calc.py": BOASTER},
            "5-honest": {"calc.py": HONEST},
            "6-breaks": {"calc.py": HONEST.replace("x + x", "x")},
        },
        over={"5-honest": ""},
    )  # fmt: skip
    system = arsandbox.SystemExperiment(
        target, "unit_pass_rate", "60s", tmp_path / "work", propose=f"patches:{place}", tag="s"
    )
    assert system.hypothesis == "Make the arithmetic right."
    first = system.baseline()
    assert first.status == "baseline", first
    assert first.evaluation is not None and first.evaluation.value == 0.5
    found = {one.description[:1]: one for one in system.rounds(10)}
    said = {number: one.status for number, one in found.items()}
    assert said == {
        "1": "rejected", "2": "rejected", "3": "indeterminate", "4": "reverted", "5": "committed", "6": "reverted",
        "": "exhausted",
    }, found  # fmt: skip
    won = found["5"].evaluation
    assert won is not None and (won.baseline, won.value, won.per_cent) == (0.5, 0.75, 50.0)
    assert "protected" in found["1"].message and "no change" in found["4"].message
    assert git(target, "show", "--name-only", "--format=", str(found["5"].commit)) == "calc.py"
    assert git(target, "rev-parse", "HEAD") == head
    assert git(target, "status", "--porcelain") == "M program.md\n?? scratch.txt"
    rows = [json.loads(line) for line in (tmp_path / "work" / "results.jsonl").read_text().splitlines()]
    assert [row["status"] for row in rows] == list(said.values())

    covered = queue(target, tmp_path / "covered", {"7-honest": {"calc.py": USED}}, over={})
    cheats = {
        "8-no-cover": {"calc.py": CODE.replace("def unused(x):", "def unused(x):  # pragma: no cover")},
    }
    queue(target, tmp_path / "cheats", cheats, over={})  # type: ignore[arg-type]
    os.rename(tmp_path / "cheats" / "8-no-cover.patch", covered / "6-no-cover.patch")
    system = arsandbox.SystemExperiment(target, "coverage", "60s", propose=f"patches:{covered}", tag="c")
    by_name = {one.description[:1]: one for one in system.rounds(3)}
    assert [one.status for one in by_name.values()] == ["reverted", "committed", "exhausted"], by_name
    gained = by_name["7"].evaluation
    assert gained is not None and gained.gain is not None and gained.gain > 0


def test_the_command_line_does_it_for_a_target_without_a_config(target: Path, tmp_path: Path) -> None:
    (target / "tox.ini").unlink()  # the suite runs without its dependency: one test of four fails for good
    git(target, "commit", "-q", "-a", "-m", "no tox")
    (target / "scratch.txt").write_text("mine\n")
    fewer = TESTS.replace(TESTS[TESTS.index("def test_cube") : TESTS.index("def test_dep")], "")
    edits: dict[str, dict[str, str | None]] = {
        "1-deletes-a-failing-test": {"tests/test_calc.py": fewer},
        "2-prints-a-false-count": {"calc.py": LIAR},
        "3-boasts-at-exit": {"calc.py": BOASTER},
        "4-honest": {"calc.py": HONEST},
    }
    place = queue(target, tmp_path / "queue", edits, over={})
    done = command_line.arsandbox(
        "loop", "--metric", "unit_pass_rate", "--target", target, "--propose", f"patches:{place}", "--budget", "60s",
        "--accept-self-reported", "--tag", "cli", "-n", "4", "--json",
    )  # fmt: skip
    assert done.code == 0, done
    rows = sorted((json.loads(line) for line in done.out.splitlines()), key=lambda row: row["round"]["number"])
    assert [row["verdict"] for row in rows] == ["rejected", "no_metric", "discard", "keep"], done
    won = rows[-1]
    assert (won["baseline"]["value"], won["metric"]["value"], won["trust"]) == (0.25, 0.5, "L1")
    assert git(target, "diff", "--name-only", "main", "arsandbox/cli") == "calc.py"
    assert git(target, "status", "--porcelain") == "?? scratch.txt"


def check_single_calls(target: Path, tmp_path: Path) -> None:
    """A run of the tree as it is, a preparation, a history: each a status, also where nothing is there."""
    ran = arsandbox.run_experiment(target, metric="unit_pass_rate", budget="60s")
    assert (ran.success, ran.value) == (True, 0.5) and "2 passed" in ran.log_tail, ran
    past = arsandbox.get_experiment_history(target)
    assert (past.experiments[0].verdict, past.experiments[0].source) == ("baseline", "ledger")
    gone = arsandbox.run_experiment(tmp_path / "nothing")
    assert not gone.success and gone.error and gone.value is None
    cloned = arsandbox.prepare_experiment(tmp_path / "clone", url=str(target), timeout="2m")
    assert cloned.cloned and cloned.status == "nothing to prepare", cloned
    broken = arsandbox.prepare_experiment(tmp_path / "none", url=str(tmp_path / "no-repository"))
    assert (broken.status, broken.cloned) == ("failed", False) and "cannot clone" in broken.message, broken

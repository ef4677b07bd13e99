"""scripts/test: what it makes of its arguments, of results, of skipped tests, and what ends with it."""

from __future__ import annotations

import ast
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from testing import groups, listing, options, orders, packages, processes, pythons, results, runner, skips, summary
from testing.results import Result

ROOT = Path(__file__).resolve().parents[3]
HELP = (ROOT / "scripts" / "testing" / "help.txt").read_text()


@pytest.fixture(autouse=True)
def checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


# --- the arguments --------------------------------------------------------------------------------------------------


def test_no_argument_is_the_default_run() -> None:
    found = options.parse([])
    assert (found.sections, found.selection, found.times, found.busy) == (("default",), (), 1, 0)
    assert found.whole and not found.keeps_results and not found.in_order and found.described == "default"


@pytest.mark.parametrize(
    ("arguments", "sections", "selection"),
    [
        (["--all"], ("default", *groups.NAMES), ()),
        (["--all", "fuzz"], ("fuzz",), ()),
        (["--all", "fuzz", "--all", "engines"], ("engines", "fuzz"), ()),
        (["--all", "tests/unit"], ("default", *groups.NAMES), ("tests/unit",)),
        (["--all", "fuzz", "tests/fuzz"], ("fuzz",), ("tests/fuzz",)),
        (["tests/unit", "--all", "faults"], ("faults",), ("tests/unit",)),
    ],
)
def test_groups_are_told_from_folders(
    arguments: list[str], sections: tuple[str, ...], selection: tuple[str, ...]
) -> None:
    found = options.parse(arguments)
    assert (found.sections, found.selection) == (sections, selection)
    assert found.keeps_results == (not selection)


def test_what_follows_two_dashes_is_pytests() -> None:
    found = options.parse(["-k", "a or b", "tests/unit", "--", "-x", "--list"])
    assert (found.word, found.extra, found.list) == ("a or b", ("-x", "--list"), False)
    assert found.described == "tests/unit -k 'a or b' -- -x --list"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--frob"], "pytest's come after --"),
        (["-x"], "pytest's come after --"),
        (["--times", "0"], "at least once"),
        (["--busy", "many"], "many is no number"),
        (["--all", "nix"], "those are long"),
        (["tests/nothing"], "tests/nothing is no file or folder"),
        (["--tim", "3"], "--tim is no option"),
    ],
)
def test_wrong_arguments_end_in_one_line(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        options.parse(arguments)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and says in said and len(said.splitlines()) == 1, said


def test_results_are_kept_for_whole_groups_alone() -> None:
    assert options.parse(["--all", "fuzz", "--seed", "3"]).keeps_results
    for more in (["-k", "a"], ["--times", "2"], ["--busy", "1"], ["tests/fuzz"], ["--", "-x"]):
        assert not options.parse(["--all", "fuzz", *more]).keeps_results, more


def test_the_help_says_every_option_and_group() -> None:
    wanted = {option for action in options._parser()._actions for option in action.option_strings}
    assert wanted <= set(re.findall(r"(?<![\w-])--?[a-z]+", HELP))
    done = subprocess.run([ROOT / "scripts" / "test", "--help"], capture_output=True, text=True, check=True)
    assert done.stdout == HELP


# --- what pytest is told --------------------------------------------------------------------------------------------


class Recorded(processes.Processes):
    """Notes the commands instead of running them."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.told: list[orders.Orders] = []

    def run(self, command: object, **others: object) -> int:
        assert isinstance(command, list)
        words = [str(word) for word in command]
        self.told.append(orders.read(next(word for word in words if word.startswith("--arsandbox")).partition("=")[2]))
        self.commands.append([word for word in words[3:] if not word.startswith(("--arsandbox", "--rootdir"))])
        return 0

    def end_leftovers(self) -> list[str]:
        return []


def told(*arguments: str) -> Recorded:
    made = Recorded()
    runner.Runner(ROOT, options.parse(arguments), made).run_all()
    return made


def test_folders_run_in_parallel_and_then_what_wants_quiet() -> None:
    beside = ["-n", str((os.cpu_count() or 1) + 2), "--dist", "loadfile", "--no-loadscope-reorder"]
    made = told("tests/unit", "-k", "size", "--", "-x")
    assert made.commands == [[*beside, "tests/unit", "-k", "size", "-x"], ["tests/unit", "-k", "size", "-x"]]
    assert [(one.groups, one.part) for one in made.told] == [(("default",), "beside"), (("default",), "alone")]


def test_files_and_tests_run_in_one_process() -> None:
    test = "tests/unit/sandbox/test_quantities.py::test_sizes"
    made = told("tests/unit/sandbox/test_quantities.py")
    assert made.commands == [["tests/unit/sandbox/test_quantities.py"]]
    assert [(one.groups, one.part) for one in made.told] == [(("default",), "all")]
    # Whoever names a test wants it to run.
    assert told(test).told[0].groups == ("default", *groups.NAMES)
    assert told(test, "--all", "faults").told[0].groups == ("faults",)


def test_no_test_is_no_success() -> None:
    assert runner.Runner(ROOT, options.parse(["tests/unit"]), Recorded()).run_all() == 5


def test_a_seed_is_drawn_for_each_run_unless_it_is_given() -> None:
    ran = runner.Runner(ROOT, options.parse(["tests/unit", "--times", "3"]), Recorded())
    ran.run_all()
    assert len({run.seed for run in ran.runs}) == 3
    ran = runner.Runner(ROOT, options.parse(["tests/unit", "--times", "2", "--seed", "7"]), Recorded())
    ran.run_all()
    assert [run.seed for run in ran.runs] == [7, 7]


def test_pythons_are_those_of_the_package() -> None:
    assert pythons.versions(ROOT)[:3] == ["3.11", "3.12", "3.13"]


# --- results --------------------------------------------------------------------------------------------------------

RESULTS = (
    Result("tests/unit/test_a.py::test_one", "passed", 2.0),
    Result("tests/unit/test_a.py::test_two[x/y]", "failed", 1.0),
    Result("tests/cli/test_b.py::test_three", "skipped", 0.5, "x32 is of x86_64"),
    Result("3.12 tests/cli/test_b.py::test_three", "passed", 4.0),
    Result("packages/demo on docker", "passed", 9.0),
)


def test_the_summary_by_folder_and_the_slowest() -> None:
    assert [line.split("s  ")[1] for line in summary.by_folder(RESULTS)] == [
        "packages (1 tests)", "3.12 tests/cli (1 tests)", "tests/unit (2 tests)", "tests/cli (1 tests)",
    ]  # fmt: skip
    assert summary.slowest(RESULTS)[1].split() == ["4.0", "s", "3.12", "tests/cli/test_b.py::test_three"]


def test_a_line_of_the_log() -> None:
    ran = summary.Ran(datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC), 12.34, 5, RESULTS, 1)
    line = summary.log_line(ran, selection="tests/unit -k 'a b'", busy=4)
    assert dict(word.split("=", 1) for word in shlex.split(line)) == {
        "time": "2024-05-06T07:08:09Z", "seed": "5", "selection": "tests/unit -k 'a b'", "busy": "4", "seconds": "12.3",
        "passed": "3", "failed": "1", "skipped": "1", "status": "1", "failures": "tests/unit/test_a.py::test_two[x/y]",
    }  # fmt: skip
    assert "NOT all passed (exit status 1)" in summary.verdict([ran], 1) and "\n" not in line


@pytest.fixture
def commit(tmp_path: Path) -> Callable[[str], None]:
    """Commits a file of the repository at tmp_path."""

    def made(text: str) -> None:
        (tmp_path / "file").write_text(text)
        for words in (["add", "file", ".gitignore"], ["commit", "-qm", "x"]):
            git = ["git", "-c", "user.name=x", "-c", "user.email=x@localhost"]
            subprocess.run([*git, *words], cwd=tmp_path, check=True)

    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / ".gitignore").write_text(".venv/\n")
    made("1")
    return made


def test_a_group_goes_on_from_what_passed_at_this_commit(tmp_path: Path, commit: Callable[[str], None]) -> None:
    file = results.ResultFile(tmp_path, "fuzz")
    assert file.begin(None, fresh=False) == []
    for result in RESULTS[:3]:
        results.add(file.path, result)
    with file.path.open("a") as half:
        half.write('{"test": "half wri')  # killed in the middle
    file.end()
    file = results.ResultFile(tmp_path, "fuzz")
    assert file.begin(None, fresh=False) == [RESULTS[0]]
    results.add(file.path, Result(RESULTS[1].test, "passed"))
    assert results.read(file.path, file.start) == [Result(RESULTS[1].test, "passed")]
    assert len(results.ResultFile(tmp_path, "fuzz").begin(None, fresh=False)) == 2
    assert results.ResultFile(tmp_path, "fuzz").begin(None, fresh=True) == []


def test_nothing_goes_on_from_another_commit_seed_or_tree(tmp_path: Path, commit: Callable[[str], None]) -> None:
    def passed(seed: int | None = None) -> list[Result]:
        file = results.ResultFile(tmp_path, "fuzz")
        found = file.begin(seed, fresh=False)
        results.add(file.path, RESULTS[0])
        file.end()
        return found

    assert passed() == [] and passed() == [RESULTS[0]]
    assert passed(9) == [] and passed(9) == [RESULTS[0]] and passed() == []
    commit("2")
    assert passed() == []
    (tmp_path / "file").write_text("changed")
    assert passed() == [] and passed() == []
    commit("3")
    assert passed() == [] and passed() == [RESULTS[0]]


def test_a_tree_that_changes_while_tests_run_gives_their_results_up(
    tmp_path: Path, commit: Callable[[str], None]
) -> None:
    file = results.ResultFile(tmp_path, "fuzz")
    file.begin(None, fresh=False)
    results.add(file.path, RESULTS[0])
    (tmp_path / "file").write_text("changed")
    file.end()
    (tmp_path / "file").write_text("1")
    assert results.ResultFile(tmp_path, "fuzz").begin(None, fresh=False) == []


# --- the plugin, in a pytest of its own -----------------------------------------------------------------------------

PROGRAM = """
import pytest

@pytest.mark.parametrize("n", [1, 12, 2])
def test_n(n):
    assert n != 2

@pytest.mark.group("faults")
def test_fault():
    pytest.skip("x32 is of x86_64")

@pytest.mark.alone
def test_alone():
    pass

@pytest.fixture
def broken():
    yield
    raise ValueError

def test_teardown(broken):
    pass
"""


def test_tests_are_picked_noted_and_counted(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = group(name)\n  alone\n")
    (tmp_path / "test_x.py").write_text(PROGRAM)
    report = tmp_path / "report"
    report.touch()

    def run(*more: str, **told: object) -> dict[str, str]:
        start = report.stat().st_size
        given = orders.Orders(str(report), **{"groups": ("default",), **told})  # type: ignore[arg-type]
        command = given.command(sys.executable, tmp_path, tmp_path)
        command[1] = ROOT / "scripts" / "run_pytest.py"
        env = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # that is quicker
        done = subprocess.run(
            [*command, "-q", *more], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
        found = {result.test: result.outcome for result in results.read(report, start)}
        assert done.returncode == (1 if "failed" in found.values() else 0), done.stdout + done.stderr
        return found

    # An earlier one that passed hides none whose name only begins alike.
    assert run("-p", "xdist", "-n", "1", part="beside", passed=("test_x.py::test_n[1]",), prefix="3.12 ") == {
        "3.12 test_x.py::test_n[12]": "passed", "3.12 test_x.py::test_n[2]": "failed",
        "3.12 test_x.py::test_teardown": "failed",
    }  # fmt: skip
    assert run(part="alone", groups=("default", "faults")) == {"test_x.py::test_alone": "passed"}
    assert run(groups=("faults",)) == {"test_x.py::test_fault": "skipped"}
    assert results.read(report)[-1].reason == "x32 is of x86_64"
    start = report.stat().st_size
    run("--collect-only", groups=("default", *groups.NAMES))
    counted = listing.count([line for line in results.lines(report, start) if "collected" in line])
    assert (counted["default"], counted["alone"], counted["faults"], counted["fuzz"]) == (5, 1, 1, 0)


def test_the_list_names_every_group() -> None:
    lines = [
        {"collected": "tests/unit/a.py::a", "groups": ["default"], "alone": True},
        {"collected": "tests/fuzz/a.py::a", "groups": ["fuzz"], "alone": False},
        {"test": "tests/cli/b.py", "outcome": "failed"},
    ]
    text = listing.described(ROOT, lines)
    assert {line.split(":")[0] for line in text[:-1] if not line.startswith(" ")} == {"default", *groups.NAMES}
    assert text[0].startswith("default: 1 tests, 1 of them alone") and "fuzz: 1 tests" in "\n".join(text)
    assert "1 tests on each of 3.11, 3.12, 3.13, and 3 checks" in "\n".join(text)
    assert text[-1].endswith("tests/cli/b.py")


def test_groups_of_tests_are_in_the_table() -> None:
    used = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"mark\.group\(\"(\w+)\"\)", path.read_text())
    }
    assert used <= set(groups.NAMES)


# --- skipped tests --------------------------------------------------------------------------------------------------


def reasons() -> Iterator[tuple[Path, str]]:
    """Every reason that a test below tests/ gives for skipping itself; what is filled in is a number."""
    for path in sorted((ROOT / "tests").rglob("*.py")):
        text = path.read_text()
        if path != Path(__file__) and re.search(r"skip(if)?\(|importorskip", text):
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in ("pytest.skip", "pytest.mark.skipif"):
                    words = [*node.args[:1], *(one.value for one in node.keywords if one.arg == "reason")]
                    yield path, _text(words[-1])
                assert not ast.unparse(node).startswith("pytest.importorskip"), path


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "0" for part in node.values)
    return str(ast.literal_eval(node))


def test_every_reason_to_skip_is_in_a_table() -> None:
    found = list(reasons())
    assert len(found) > 10
    for path, reason in found:
        assert skips.allowed(reason) != bool(skips.missing(reason)), f"{path.name}: {reason} (scripts/testing/skips.py)"
    said = [reason for _, reason in found]
    for pattern in (*skips.ALLOWED, *skips.MISSING):
        assert any(re.fullmatch(pattern, reason) for reason in said), f"no test says {pattern} any more"


def test_a_missing_tool_fails_ci_and_is_a_line_elsewhere() -> None:
    gcc = "there is no C compiler for the stand-in libnvidia-ml.so.1"
    skipped = [Result("a", "skipped", 0, gcc), Result("b", "skipped", 0, gcc), RESULTS[2]]
    assert skips.judge(skipped, ci=True).failed and not skips.judge(skipped, ci=False).failed
    assert skips.judge(skipped, ci=False).lines == ("left out: 2 tests, since there is no " + skips.missing(gcc),)  # type: ignore[operator]
    assert skips.judge([Result("a", "skipped", 0, "who knows")], ci=True).failed
    assert not skips.judge(RESULTS, ci=True).failed


# --- processes ------------------------------------------------------------------------------------------------------


def gone(pid: int) -> bool:
    """Whether a process has ended, within half a minute."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


@contextmanager
def child(program: str) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A Python that has printed the pids of what it started, and waits."""
    head = f"import sys; sys.path.append({str(ROOT / 'scripts')!r}); from testing import processes\n"
    with subprocess.Popen([sys.executable, "-S", "-c", head + program], stdout=subprocess.PIPE, text=True) as made:
        assert made.stdout is not None
        yield made, [int(word) for word in made.stdout.readline().split()]


BUSY = """
import subprocess, time
with processes.busy(2):
    print(*open(f"/proc/self/task/{processes.os.getpid()}/children").read().split(), flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_busy_loops_end_with_their_parent(number: signal.Signals) -> None:
    with child(BUSY) as (parent, loops):
        assert len(loops) == 2
        parent.send_signal(number)
        parent.wait()
        assert all(gone(pid) for pid in loops)


RUNNING = """
import pathlib
own = processes.Processes()
with own.watching():
    try:
        # A program that has left its parent and its session, and one that heeds SIGINT.
        own.run(["sh", "-c", "setsid sleep 60 & echo $! $$; exec sleep 60"], cwd=pathlib.Path("/"))
    except processes.StoppedError as error:
        code = 128 + error.number
raise SystemExit(code)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_what_runs(number: signal.Signals, code: int) -> None:
    with child(RUNNING) as (tool, pids):
        assert len(pids) == 2
        tool.send_signal(number)
        assert tool.wait(60) == code
        assert all(gone(pid) for pid in pids)


def test_a_time_limit_ends_a_program(tmp_path: Path) -> None:
    own, began = processes.Processes(), time.monotonic()
    with pytest.raises(processes.TimeIsUpError):
        own.run(["sleep", "60"], cwd=tmp_path, limit_s=0.1)
    assert time.monotonic() - began < 30 and not own.leftovers()
    assert own.run(["sh", "-c", "exit 3"], cwd=tmp_path) == 3


def test_a_program_that_fails_is_told_by_its_last_lines(tmp_path: Path) -> None:
    own = processes.Processes()
    assert packages.quietly(["true"], cwd=tmp_path, processes=own) is None
    said = packages.quietly(["sh", "-c", "echo why; exit 3"], cwd=tmp_path, processes=own)
    assert said is not None and said.endswith("ended with 3: why")
    assert "No such file" in str(packages.quietly(["./none"], cwd=tmp_path, processes=own))

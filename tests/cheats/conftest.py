"""Fixtures of the corpus of cheats, and the table of cheats by level at the end."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent
collect_ignore = ["projects"]  # their tests are those of the projects


def _load(name: str, file: Path) -> ModuleType:
    """The module in `file` under one name, whoever asks first."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


support = _load("arsandbox_test_support", HERE.parent / "integration" / "support.py")
corpus = _load("arsandbox_cheats_corpus", HERE / "corpus.py")
levels = _load("arsandbox_cheats_levels", HERE / "levels.py")
naive = _load("arsandbox_cheats_naive", HERE / "naive.py")
table = _load("arsandbox_cheats_table", HERE / "table.py")


@pytest.fixture(scope="session")
def home() -> Iterator[Path]:
    """The session's state directory, with the image `cpu`."""
    support.image_digest()
    yield support.session_home()
    support.close_connections()


@pytest.fixture(scope="session")
def tasks(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Any]:
    """`tasks(project, level)`: its repository, made once; its baseline and data are then there for all edits."""
    made: dict[tuple[str, str], Any] = {}

    def task(project: str, level: str) -> Any:
        if (project, level) not in made:
            path = tmp_path_factory.mktemp(f"{project}-{level}") / f"{project}-{level}"
            made[project, level] = levels.create(
                path, level, corpus.files_of(project), corpus.config_of(project, level)
            )
        return made[project, level]

    return task


@pytest.fixture(scope="session")
def prepared(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, bytes]]:
    """`prepared(project)`: the project's files after its preparation, as the naive runner has them."""
    made: dict[str, dict[str, bytes]] = {}

    def files(project: str) -> dict[str, bytes]:
        if project not in made:
            runner = _naive(project, corpus.files_of(project), tmp_path_factory.mktemp("prepare"))
            try:
                runner.prepare()
            finally:
                runner.close()
            paths = [path for path in runner.work.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
            made[project] = {str(path.relative_to(runner.work)): path.read_bytes() for path in sorted(paths)}
        return made[project]

    return files


@pytest.fixture
def naive_runner(prepared: Callable[[str], dict[str, bytes]], tmp_path: Path) -> Iterator[Callable[[str], Any]]:
    """`naive_runner(project)`: a naive runner with a prepared working copy of the project."""
    opened: list[Any] = []

    def runner(project: str) -> Any:
        opened.append(_naive(project, prepared(project), tmp_path / "naive"))
        return opened[-1]

    yield runner
    for one in opened:
        one.close()


def _naive(project: str, files: dict[str, bytes], place: Path) -> Any:
    config = corpus.config_of(project, corpus.levels_of(project)[0])
    return naive.NaiveRunner(support.docker_client(), support.image_digest(), place, files, config)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table of cheats by level, from what this session has measured."""
    measured: dict[tuple[str, str], str] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if name == "cheat":
                    identity, level, seen = value
                    measured[identity, level] = seen
    if measured:
        terminalreporter.section("cheats by level")
        for line in table.measured_lines(measured):
            terminalreporter.write_line(line)

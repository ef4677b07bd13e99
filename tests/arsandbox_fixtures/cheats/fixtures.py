"""Fixtures of the corpus of cheats, and the table of cheats by level at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from arsandbox_fixtures.cheats.corpus import config_of, files_of, levels_of
from arsandbox_fixtures.cheats.levels import Task, create
from arsandbox_fixtures.cheats.naive import NaiveRunner
from arsandbox_fixtures.cheats.table import measured_lines
from arsandbox_fixtures.docker_engine import docker_client
from arsandbox_fixtures.image import image_digest


@pytest.fixture(scope="session")
def tasks(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Task]:
    """`tasks(project, level)`: its repository, made once; its baseline and data are then there for all edits."""
    made: dict[tuple[str, str], Task] = {}

    def task(project: str, level: str) -> Task:
        if (project, level) not in made:
            path = tmp_path_factory.mktemp(f"{project}-{level}") / f"{project}-{level}"
            config = config_of(project, level)
            assert config is not None, f"{project} is not judged at {level}"
            made[project, level] = create(path, level, files_of(project), config)
        return made[project, level]

    return task


@pytest.fixture(scope="session")
def prepared(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, bytes]]:
    """`prepared(project)`: the project's files after its preparation, as the naive runner has them."""
    made: dict[str, dict[str, bytes]] = {}

    def files(project: str) -> dict[str, bytes]:
        if project not in made:
            runner = _naive(project, files_of(project), tmp_path_factory.mktemp("prepare"))
            try:
                runner.prepare()
            finally:
                runner.close()
            paths = [path for path in runner.work.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
            made[project] = {str(path.relative_to(runner.work)): path.read_bytes() for path in sorted(paths)}
        return made[project]

    return files


@pytest.fixture
def naive_runner(prepared: Callable[[str], dict[str, bytes]], tmp_path: Path) -> Iterator[Callable[[str], NaiveRunner]]:
    """`naive_runner(project)`: a naive runner with a prepared working copy of the project."""
    opened: list[NaiveRunner] = []

    def runner(project: str) -> NaiveRunner:
        opened.append(_naive(project, prepared(project), tmp_path / "naive"))
        return opened[-1]

    yield runner
    for one in opened:
        one.close()


def _naive(project: str, files: dict[str, bytes], place: Path) -> NaiveRunner:
    config = config_of(project, levels_of(project)[0])
    assert config is not None
    return NaiveRunner(docker_client(), image_digest(), place, files, config)


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
        for line in measured_lines(measured):
            terminalreporter.write_line(line)

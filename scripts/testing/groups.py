"""The table of test groups. A test belongs to one by `@pytest.mark.group("NAME")`, to the default run without."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT = "default"
LIMIT_S = 45 * 60.0


@dataclass(frozen=True)
class Group:
    """One row: its name, what it holds and needs in words, and how its tests are spread over processes."""

    name: str
    holds: str
    needs: str
    # `loadfile` keeps the fixtures of a file in one process; `worksteal` is for long files whose tests share none.
    dist: str = "loadfile"
    # Such a group is more than marked tests: pythons.py runs it.
    on_pythons: bool = False


DEFAULT_RUN = Group(
    DEFAULT,
    holds="the linters, and every test that belongs to no group; CI runs it",
    needs="Docker, runsc, docker-registry, gcc",
)
GROUPS = (
    Group(
        "long",
        holds="long stories against a real engine: reruns, images built from nothing, test suites; CI runs it, too",
        needs="Docker",
    ),
    Group(
        "engines",
        holds="long tests against real engines: images, GPUs' stand-ins, a whole sweep",
        needs="Docker, docker-registry, gcc, and root for daemons of its own",
    ),
    Group(
        "faults",
        holds="the controller killed at every step and at random moments, a full disk, an engine that dies",
        needs="Docker, and root for a small file system",
        dist="worksteal",
    ),
    Group(
        "fuzz",
        holds="what reads untrusted bytes, with many more examples, drawn from the run's seed",
        needs="nothing but git",
        dist="worksteal",
    ),
    Group(
        "hostile",
        holds="hostile programs, and every cheat at every trust level and against a runner that believes it",
        needs="Docker",
    ),
    Group(
        "agents",
        holds="agents of others as proposers: aider for real, against a stand-in of its model",
        needs="aider (pip install aider-chat, in an environment of its own)",
    ),
    Group(
        "pythons",
        holds="the unit and command-line tests on every Python that the package names; its sdist, wheel and demo",
        needs="Docker; Pythons on PATH, from pyenv or Debian; the package index",
        on_pythons=True,
    ),
)
NAMES = tuple(group.name for group in GROUPS)


def named(name: str) -> Group:
    """The row of a group, or that of the default run."""
    return next(group for group in (DEFAULT_RUN, *GROUPS) if group.name == name)

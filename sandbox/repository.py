"""The user's git repository, read without trusting its config, hooks, index or working tree.

GitPython reads HEAD, refs and config in pure Python; objects are read through our own store
(objects.py). Agents edit this repository too, so a config that could make git run a command is
refused by name rather than worked around.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import git
from git.config import GitConfigParser

from arsandbox.sandbox import state
from arsandbox.sandbox.errors import RefusedError, RepositoryError, UsageError
from arsandbox.sandbox.objects import ObjectStore, run_git

# Keys with which a repository's own config makes git run a program (git-config(1)).
_COMMAND_KEYS = re.compile(
    r"core\.(fsmonitor|hookspath|sshcommand|gitproxy|askpass|pager|editor|alternaterefscommand)"
    r"|filter\..+\.(clean|smudge|process)"
    r"|diff\.external|diff\..+\.(command|textconv)|merge\..+\.driver"
    r"|(credential|credential\..+)\.helper|gpg\.program|gpg\..+\.(program|defaultkeycommand)"
    r"|uploadpack\.packobjectshook|remote\..+\.(uploadpack|receivepack|vcs)|(pager|alias|browser|man)\..+"
    r"|(difftool|mergetool)\..+\.(cmd|path)|sequence\.editor|submodule\..+\.update|trailer\..+\.(command|cmd)",
    re.IGNORECASE,
)
_HARMLESS = {"true", "false", "yes", "no", "on", "off", "0", "1", ""}


class Repository:
    """One repository of the user: where it is, its refs, and the store that reads its objects."""

    def __init__(self, repo: git.Repo) -> None:
        self._repo = repo
        self.git_directory = Path(repo.git_dir)
        self.common_directory = Path(repo.common_dir)
        tree = repo.working_tree_dir
        if tree is None:
            raise UsageError(f"{self.common_directory} is a bare repository", hint="clone it and run in the clone")
        self.worktree = Path(tree)
        self.state = state.repository_state(self.common_directory)
        alternate = self.common_directory / "objects"
        if not alternate.is_dir():
            raise RepositoryError(f"{alternate} is missing: is this repository complete?")
        shallow = self.common_directory / "shallow"
        self.objects = ObjectStore.open(
            self.state / "objects.git",
            alternate=alternate,
            object_format=self._object_format(),
            shallow=shallow if shallow.is_file() else None,
        )

    @classmethod
    def open(cls, path: Path) -> Repository:
        """The repository that `path` is in. Raises UsageError (none, bare), RefusedError (hostile config)."""
        if not path.exists():
            raise UsageError(f"--repo {path}: no such directory")
        try:
            repo = git.Repo(path, search_parent_directories=True, expand_vars=False)
        except (git.InvalidGitRepositoryError, git.NoSuchPathError) as error:
            raise UsageError(
                f"{path.resolve()} is not in a git repository",
                hint="git init && git add -A && git commit -m base",
            ) from error
        except (OSError, ValueError) as error:
            raise RepositoryError(f"{path}: the repository's config cannot be read: {error}") from error
        _refuse_command_config(Path(repo.common_dir), Path(repo.git_dir))
        return cls(repo)

    @property
    def name(self) -> str:
        """The repository's folder name."""
        return self.worktree.name

    def head(self) -> str:
        """The commit id of HEAD. Raises UsageError for an unborn branch."""
        try:
            return self._repo.head.commit.hexsha
        except ValueError as error:
            raise UsageError(
                f"{self.worktree}: HEAD has no commit yet", hint="git add -A && git commit -m base"
            ) from error

    def resolve(self, revision: str) -> str:
        """The commit id that `revision` names. Raises UsageError."""
        if not revision or revision.startswith("-"):
            raise UsageError(f"revision {revision!r}: not a commit of {self.worktree}")
        done = run_git(
            self.common_directory,
            ["rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}"],
            check=False,
        )
        if done.returncode != 0:
            raise UsageError(f"revision {revision!r}: not a commit of {self.worktree}", hint="see: git log --oneline")
        return done.stdout.decode().strip()

    def branch_tip(self, branch: str) -> str | None:
        """The commit that refs/heads/`branch` names, or None where there is no such branch."""
        done = run_git(
            self.common_directory,
            ["rev-parse", "--verify", "--quiet", f"refs/heads/{branch}^{{commit}}"],
            check=False,
        )
        return done.stdout.decode().strip() if done.returncode == 0 else None

    def current_branch(self) -> str:
        """The branch that is checked out here, or `HEAD` when it is detached."""
        head = self._repo.head
        return "HEAD" if head.is_detached else head.reference.name

    def checked_out_branches(self) -> set[str]:
        """Branches (short names) that HEAD of any worktree points at."""
        heads = [self.common_directory / "HEAD", *self.common_directory.glob("worktrees/*/HEAD")]
        found = set()
        for head in heads:
            try:
                text = head.read_text(encoding="utf-8", errors="replace").strip()
            except FileNotFoundError:
                continue
            if text.startswith("ref: refs/heads/"):
                found.add(text.removeprefix("ref: refs/heads/"))
        return found

    def is_ancestor(self, older: str, newer: str) -> bool:
        """Whether commit `older` is `newer` or one of its ancestors."""
        done = run_git(self.objects.directory, ["merge-base", "--is-ancestor", older, newer], check=False)
        return done.returncode == 0

    def _object_format(self) -> str:
        with self._repo.config_reader("repository") as config:
            return str(config.get_value("extensions", "objectformat", "sha1"))


def create_repository(place: Path, content: Mapping[str, bytes], *, message: str) -> str:
    """Make a git repository in the empty or new directory `place` with one commit; returns its id.

    Raises UsageError when there is something in the way.
    """
    if place.exists() and any(place.iterdir()):
        raise UsageError(f"{place} is not empty", hint="name a directory that does not exist yet")
    repo = git.Repo.init(place, initial_branch="main")
    for path, data in content.items():
        target = place / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    repo.index.add(sorted(content))
    author = git.Actor("arsandbox", "arsandbox@localhost")
    return repo.index.commit(message, author=author, committer=author, skip_hooks=True).hexsha


def clone_repository(url: str, place: Path, *, depth: int) -> Path:
    """Clone `url` into `place` (below it, by the URL's last part, when it exists); returns the clone.

    Raises UsageError for a URL that git would run as a command, RepositoryError when cloning fails.
    """
    if url.startswith("-") or "::" in url:
        raise UsageError(f"--clone {url!r}: not a URL that can be cloned", hint="https://, ssh:// or a path")
    name = url.rstrip("/").rsplit("/", 1)[-1].removesuffix(".git")
    target = place / name if place.exists() and any(place.iterdir()) else place
    try:
        git.Repo.clone_from(url, target, multi_options=[f"--depth={depth}"] if depth else [])
    except git.GitCommandError as error:
        lines = str(error.stderr).strip().strip("'").splitlines() or ["no message"]
        raise RepositoryError(f"cannot clone {url}: {lines[-1].strip()}") from error
    return target


def _refuse_command_config(common: Path, git_directory: Path) -> None:
    for file in (common / "config", git_directory / "config.worktree"):
        if not file.is_file():
            continue
        try:
            parser = GitConfigParser(file, read_only=True, merge_includes=False)
            parser.read()
        except (OSError, ValueError, AssertionError) as error:
            raise RepositoryError(f"{file} cannot be read as a git config") from error
        for section in parser.sections():
            if re.match(r"include(if)?\b", section, re.IGNORECASE):
                raise _refusal(file, "include.path")
            for key, value in parser.items(section):
                dotted = _dotted(section, key)
                harmless = isinstance(value, str) and value.strip().lower() in _HARMLESS
                if _COMMAND_KEYS.fullmatch(dotted) and not harmless:
                    raise _refusal(file, dotted)


def _refusal(file: Path, key: str) -> RefusedError:
    return RefusedError(
        f"{file}: {key} makes git run a program of the repository's choosing",
        hint=f"git config --file {file} --unset-all {key}, or clone the repository afresh",
    )


def _dotted(section: str, key: str) -> str:
    name, _, rest = section.partition(" ")
    subsection = rest.strip().strip('"')
    return f"{name}.{subsection}.{key}" if subsection else f"{name}.{key}"

"""The user's git repository, read without trusting its config, hooks, index or working tree.

Agents edit this repository too. It is found and its config is checked before any git program looks at
it: a config that could make git run a command is refused by name rather than worked around. Refs are
then read by `git` under our own settings, objects through our own store (objects.py).
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

from arsandbox.sandbox import state
from arsandbox.sandbox.errors import MachineError, RefusedError, RepositoryError, UsageError
from arsandbox.sandbox.git_process import run_git
from arsandbox.sandbox.objects import ObjectStore

# Keys with which a repository's own config makes git run a program (git-config(1)), or lets it.
_COMMAND_KEYS = re.compile(
    r"core\.(fsmonitor|hookspath|sshcommand|gitproxy|askpass|pager|editor|alternaterefscommand)"
    r"|filter\..+\.(clean|smudge|process)"
    r"|diff\.external|diff\..+\.(command|textconv)|merge\..+\.driver"
    r"|(credential|credential\..+)\.helper|gpg\.program|gpg\..+\.(program|defaultkeycommand)"
    r"|uploadpack\.packobjectshook|remote\..+\.(uploadpack|receivepack|vcs)|(pager|alias|browser|man)\..+"
    r"|(difftool|mergetool)\..+\.(cmd|path)|sequence\.editor|submodule\..+\.update|trailer\..+\.(command|cmd)"
    r"|protocol\.(.+\.)?allow|gc\.recentobjectshook",
    re.IGNORECASE | re.DOTALL,
)
# A URL that is a command: in remotes, their rewriting (`url.X.insteadOf`), submodules and branches.
_URL_KEYS = re.compile(r"(remote|url|submodule|branch)\..+", re.IGNORECASE | re.DOTALL)
_COMMAND_URL = re.compile(r"\bext::", re.IGNORECASE)
_HARMLESS = {"true", "false", "yes", "no", "on", "off", "0", "1", ""}
_LARGEST_CONFIG = 8 * 1024**2
_ANSWER_S = 60.0
# The store's name below a repository's state directory.
OBJECTS = "objects.git"


class Repository:
    """One repository of the user: where it is, its refs, and the store that reads its objects."""

    def __init__(self, worktree: Path, git_directory: Path, common_directory: Path, *, object_format: str) -> None:
        self.worktree = worktree
        self.git_directory = git_directory
        self.common_directory = common_directory
        self.state = state.repository_state(common_directory)
        shallow = common_directory / "shallow"
        self.objects = ObjectStore.open(
            self.state / OBJECTS,
            alternate=common_directory / "objects",
            object_format=object_format,
            shallow=shallow if shallow.is_file() else None,
        )

    @classmethod
    def open(cls, path: Path) -> Repository:
        """The repository that `path` is in.

        Raises UsageError (none, bare), RefusedError (hostile config), RepositoryError (damaged).
        """
        if not path.exists():
            raise UsageError(f"--repo {path}: no such directory")
        found = _find(path.resolve())
        if found is None:
            raise UsageError(
                f"{path.resolve()} is not in a git repository",
                hint="git init && git add -A && git commit -m base",
            )
        worktree, git_directory = found
        link = _content(git_directory / "commondir")
        common = git_directory if link is None else Path(os.path.normpath(git_directory / os.fsdecode(link.strip())))
        settings = _checked_config(common / "config")
        own = _checked_config(git_directory / "config.worktree")
        # In a linked worktree `core.bare` speaks of the repository that it is linked to.
        declared = {**settings, **own}.get("core.bare", "").lower() in ("true", "yes", "on", "1")
        if worktree is None or (declared and git_directory == common):
            raise UsageError(f"{common} is a bare repository", hint="clone it and run in the clone")
        if not (common / "objects").is_dir():
            raise RepositoryError(f"{common / 'objects'} is missing: is this repository complete?")
        for name in ("packed-refs", "shallow", "objects/info/alternates"):
            _content(common / name, limit=None)
        _head_text(git_directory / "HEAD")
        return cls(worktree, git_directory, common, object_format=settings.get("extensions.objectformat", "sha1"))

    @property
    def name(self) -> str:
        """The repository's folder name."""
        return self.worktree.name

    def head(self) -> str:
        """The commit id of this worktree's HEAD. Raises UsageError for an unborn branch, else RepositoryError."""
        text = _head_text(self.git_directory / "HEAD")
        commit = None if "\0" in text else self._commit("HEAD")
        if commit is not None:
            return commit
        if self._is_unborn():
            raise UsageError(f"{self.worktree}: HEAD has no commit yet", hint="git add -A && git commit -m base")
        raise RepositoryError(
            f"{self.worktree}: HEAD names no commit that can be read", hint="see: git fsck, git status"
        )

    def resolve(self, revision: str) -> str:
        """The commit id that `revision` names in this worktree. Raises UsageError."""
        commit = None if not revision or revision.startswith("-") or "\0" in revision else self._commit(revision)
        if commit is None:
            raise UsageError(f"revision {revision!r}: not a commit of {self.worktree}", hint="see: git log --oneline")
        return commit

    def branch_tip(self, branch: str) -> str | None:
        """The commit that refs/heads/`branch` names, or None where there is no such branch."""
        return self._commit(f"refs/heads/{branch}")

    def current_branch(self) -> str:
        """The branch that is checked out here, or `HEAD` when it is detached."""
        return self.points_to("HEAD").removeprefix("refs/heads/") or "HEAD"

    def points_to(self, ref: str) -> str:
        """The ref that the symbolic ref `ref` stands for, empty where it is no symbolic ref."""
        done = run_git(self.git_directory, ["symbolic-ref", "-q", ref], check=False, timeout=_ANSWER_S)
        return os.fsdecode(done.stdout.rstrip(b"\n")) if done.returncode == 0 else ""

    def checked_out_branches(self) -> set[str]:
        """Branches (short names) that HEAD of any worktree points at."""
        found = set()
        for head in (self.common_directory / "HEAD", *self.common_directory.glob("worktrees/*/HEAD")):
            match = re.match(r"ref:\s*refs/heads/(.+)", _head_text(head).strip())
            if match:
                found.add(match[1])
        return found

    def is_ancestor(self, older: str, newer: str) -> bool:
        """Whether commit `older` is `newer` or one of its ancestors."""
        done = run_git(self.objects.directory, ["merge-base", "--is-ancestor", older, newer], check=False)
        return done.returncode == 0

    def _commit(self, revision: str) -> str | None:
        done = run_git(
            self.git_directory,
            ["rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}"],
            check=False,
            timeout=_ANSWER_S,
        )
        return done.stdout.decode().strip() if done.returncode == 0 else None

    def _is_unborn(self) -> bool:
        """Whether HEAD names a branch of which there is no trace, not even a broken one."""
        ref = self.points_to("HEAD")
        if not ref.startswith("refs/heads/") or os.path.lexists(self.common_directory / ref):
            return False
        listed = run_git(
            self.git_directory, ["for-each-ref", "--format=%(refname)", ref], check=False, timeout=_ANSWER_S
        )
        return listed.returncode == 0 and not listed.stdout


def _gitpython() -> ModuleType:
    """GitPython, which asks for the git program while it is imported. Raises MachineError without one."""
    try:
        import git
    except ImportError as error:
        raise MachineError("git is not installed", hint="sudo apt-get install git") from error
    return git


def create_repository(place: Path, content: Mapping[str, bytes], *, message: str) -> str:
    """Make a git repository in the empty or new directory `place` with one commit; returns its id.

    Raises UsageError when there is something in the way.
    """
    if place.exists() and any(place.iterdir()):
        raise UsageError(f"{place} is not empty", hint="name a directory that does not exist yet")
    git = _gitpython()
    repo = git.Repo.init(place, initial_branch="main")
    for path, data in content.items():
        target = place / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    repo.index.add(sorted(content))
    author = git.Actor("arsandbox", "arsandbox@localhost")
    return str(repo.index.commit(message, author=author, committer=author, skip_hooks=True).hexsha)


def clone_repository(url: str, place: Path, *, depth: int) -> Path:
    """Clone `url` into `place` (below it, by the URL's last part, when it exists); returns the clone.

    Raises UsageError for a URL that git would run as a command, RepositoryError when cloning fails.
    """
    if url.startswith("-") or "::" in url:
        raise UsageError(f"--clone {url!r}: not a URL that can be cloned", hint="https://, ssh:// or a path")
    name = url.rstrip("/").rsplit("/", 1)[-1].removesuffix(".git")
    target = place / name if place.exists() and any(place.iterdir()) else place
    git = _gitpython()
    try:
        git.Repo.clone_from(url, target, multi_options=[f"--depth={depth}"] if depth else [])
    except git.GitCommandError as error:
        lines = str(error.stderr).strip().strip("'").splitlines() or ["no message"]
        raise RepositoryError(f"cannot clone {url}: {lines[-1].strip()}") from error
    return target


def _find(path: Path) -> tuple[Path | None, Path] | None:
    """(worktree, git directory) of the repository around `path`: no worktree when bare, None without one."""
    for place in (path, *path.parents):
        link = place / ".git"
        if link.is_dir() and os.path.lexists(link / "HEAD"):
            return place, link.resolve()
        if os.path.lexists(link) and not link.is_dir():
            text = _content(link) or b""
            target = place / os.fsdecode(text.removeprefix(b"gitdir: ").rstrip(b"\r\n"))
            if not text.startswith(b"gitdir: ") or not target.is_dir():
                raise RepositoryError(f"{link} names no git directory")
            return place, target.resolve()
        if os.path.lexists(place / "HEAD") and (place / "objects").is_dir() and (place / "refs").is_dir():
            return (place.parent if place.name == ".git" else None), place
    return None


def _content(file: Path, *, limit: int | None = _LARGEST_CONFIG) -> bytes | None:
    """What the regular file `file` holds, None where there is none; only a look where `limit` is None.

    Opening never blocks and follows no symlink. Raises RepositoryError for anything but a regular file.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:  # a symlink or a socket, not ours to read, or no path at all
        raise RepositoryError(f"{str(file)!r} cannot be read as a regular file: {error}") from error
    with open(descriptor, "rb") as opened:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise RepositoryError(f"{file} is not a regular file")
        if limit is None:
            return b""
        content = opened.read(limit + 1)
    if len(content) > limit:
        raise RepositoryError(f"{file} is larger than {limit} bytes")
    return content


def _head_text(file: Path) -> str:
    """What a HEAD file says; a symlink, as git once made them, as the text of the same meaning."""
    if file.is_symlink():
        return "ref: " + os.fsdecode(os.readlink(file))
    return os.fsdecode(_content(file) or b"")


def _checked_config(file: Path) -> dict[str, str]:
    """The settings of `file`, by git's own reading of it (last value wins); none where it is missing.

    Raises RefusedError for a setting that runs a command or includes a file, RepositoryError for damage.
    """
    settings = {}
    for key, value in _settings(file):
        lowered = key.lower()
        if lowered.startswith(("include.", "includeif.")):
            raise _refusal(file, "include.path")
        if _COMMAND_KEYS.fullmatch(key) and value.strip().lower() not in _HARMLESS:
            raise _refusal(file, key)
        if _URL_KEYS.fullmatch(key) and _COMMAND_URL.search(f"{key}\n{value}"):
            raise _refusal(file, key)
        settings[lowered] = value
    return settings


def _settings(file: Path) -> Iterator[tuple[str, str]]:
    content = _content(file)
    if content is None:
        return
    # git reads the very bytes that were looked at, and no repository: a file may change, a FIFO block.
    done = run_git(
        Path(os.devnull),
        ["config", "--file", "-", "--no-includes", "--list", "-z"],
        stdin=content,
        check=False,
        timeout=_ANSWER_S,
    )
    if done.returncode != 0:
        raise RepositoryError(f"{file} cannot be read as a git config", hint=f"see: git config --file {file} --list")
    for row in done.stdout.split(b"\0"):
        if row:
            key, _, value = os.fsdecode(row).partition("\n")
            yield key, value


def _refusal(file: Path, key: str) -> RefusedError:
    name = state.printable(key)
    return RefusedError(
        f"{file}: {name} makes git run a program of the repository's choosing",
        hint=f"git config --file {file} --unset-all {name}, or clone the repository afresh",
    )

"""Which edits a candidate may consist of: the gate in front of every run and every promotion."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath

import pathspec

# Paths that a tool of the host or of the next experiment would execute or obey (containment.md, 33).
_EXECUTED = re.compile(
    r"(?:^|/)(?:\.git[^/]*|\.github|\.gitlab-ci\.yml|\.circleci|\.env(?:rc|\.[^/]*)?|\.vscode|\.idea|\.cursor[^/]*|\.claude|"
    r"\.aider[^/]*|\.mcp\.json|AGENTS\.md|CLAUDE\.md|conftest\.py|sitecustomize\.py|usercustomize\.py|"
    r"[^/]*\.pth|\.pre-commit-config\.yaml|tox\.ini|setup\.cfg|pytest\.ini|arsandbox\.toml|pyproject\.toml)(?:/|$)",
    re.IGNORECASE,
)
# Characters that show nothing though Unicode calls them letters, marks or symbols: fillers, variation selectors.
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0000-\U000e0fff]"
)


@dataclass(frozen=True)
class Edit:
    """One changed path: git modes before and after (None: absent)."""

    path: str
    old_mode: str | None
    new_mode: str | None


@dataclass(frozen=True)
class EditRules:
    """`editable` and `protected` are gitignore-style patterns of the base commit's config.

    `bounds` are the policy's groups of patterns: an editable path matches one of each group, too.
    """

    editable: tuple[str, ...]
    protected: tuple[str, ...]
    bounds: tuple[tuple[str, ...], ...] = ()

    def is_editable(self, path: str) -> bool:
        """Whether a candidate may change `path`."""
        groups = (self.editable, *self.bounds)
        return _clean(path) and all(_spec(group).match_file(path) for group in groups) and not self.is_protected(path)

    def is_protected(self, path: str) -> bool:
        """Whether `path` is declared as protected."""
        return _spec(self.protected).match_file(path)

    def refusals(self, edits: Iterable[Edit]) -> list[str]:
        """Why each refused edit is refused, one clear line each; empty when all may pass."""
        return [line for edit in edits if (line := self._refusal(edit)) is not None]

    def _refusal(self, edit: Edit) -> str | None:
        path = edit.path
        if not _clean(path):
            return f"{path!a}: is not a plain path below the repository's root"
        if _strange(path):
            return f"{path!a}: names with control, invisible or ambiguous characters are refused"
        if self.is_protected(path):
            return f"{path}: is protected"
        for group in self.bounds:
            if not _spec(group).match_file(path):
                return f"{path}: the policy allows edits of nothing but {', '.join(group)}"
        if not self.is_editable(path):
            return f"{path}: is not among the editable paths ({', '.join(self.editable)})"
        if _EXECUTED.search(path) and path not in self.editable:
            return f"{path}: tools run or obey such a file; name it literally in `editable` to allow it"
        for mode in (edit.old_mode, edit.new_mode):
            if mode not in (None, "100644", "100755"):
                kind = {"120000": "a symlink", "160000": "a submodule"}.get(str(mode), f"mode {mode}")
                return f"{path}: is {kind}; only regular files may be edited"
        return None


def _clean(path: str) -> bool:
    pure = PurePosixPath(path)
    return path == str(pure) and path != "." and not pure.is_absolute() and ".." not in pure.parts


def _strange(path: str) -> bool:
    return (
        not path.isprintable()
        or unicodedata.normalize("NFC", path) != path
        or _INVISIBLE.search(path) is not None
        or any(unicodedata.category(character) in ("Cf", "Co", "Cn", "Cs") for character in path)
    )


@lru_cache(maxsize=64)
def _spec(patterns: tuple[str, ...]) -> pathspec.GitIgnoreSpec:
    # Anchored at the root: `train.py` means that one file (or directory), not any of that name.
    anchored = [pattern if pattern.startswith("/") else f"/{pattern}" for pattern in patterns]
    return pathspec.GitIgnoreSpec.from_lines(anchored)

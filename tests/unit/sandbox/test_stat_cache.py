"""The stat cache never hides an edit, and spares reading what has not changed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arsandbox.policies.edits import EditRules
from arsandbox.sandbox import candidate
from arsandbox.sandbox.repository import Repository
from arsandbox.sandbox.stat_cache import StatCache

BLOB = "b" * 40
RULES = EditRules(editable=("*",), protected=())


def settled(monkeypatch: pytest.MonkeyPatch, seconds: float = 10.0) -> None:
    """Let the clock be later, so that files written just now count as settled."""
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + int(seconds * 1e9))


def cache_of(tmp_path: Path) -> StatCache:
    return StatCache(tmp_path / "cache.json", tmp_path)


def test_an_unchanged_file_is_known_and_survives_a_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("x")
    settled(monkeypatch)
    cache = cache_of(tmp_path)
    cache.remember("a", "100644", BLOB)
    cache.save()
    again = cache_of(tmp_path)
    assert again.holds("a", "100644", BLOB)
    assert not again.holds("a", "100755", BLOB) and not again.holds("a", "100644", "c" * 40)
    assert not again.holds("b", "100644", BLOB)


def test_a_fresh_file_is_not_remembered(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    cache = cache_of(tmp_path)
    cache.remember("a", "100644", BLOB)
    assert not cache.holds("a", "100644", BLOB)


@pytest.mark.parametrize("how", ["write", "same size and times", "replace", "chmod", "symlink", "remove"])
def test_every_change_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    file = tmp_path / "a"
    file.write_text("x")
    before = file.stat()
    settled(monkeypatch)
    cache = cache_of(tmp_path)
    cache.remember("a", "100644", BLOB)
    assert cache.holds("a", "100644", BLOB)
    time.sleep(0.02)
    if how == "write":
        file.write_text("longer")
    elif how == "same size and times":
        file.write_text("y")
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif how == "replace":
        (tmp_path / "b").write_text("y")
        os.utime(tmp_path / "b", ns=(before.st_atime_ns, before.st_mtime_ns))
        (tmp_path / "b").rename(file)
    elif how == "chmod":
        file.chmod(0o755)
    elif how == "symlink":
        file.unlink()
        file.symlink_to("/etc/passwd")
    else:
        file.unlink()
    assert not cache.holds("a", "100644", BLOB)


@pytest.mark.parametrize("content", ["", "null", "[1]", '{"a": 1}', '{"a": [1]}', "[" * 100_000, "\xff"])
def test_a_damaged_cache_is_an_empty_one(tmp_path: Path, content: str) -> None:
    (tmp_path / "a").write_text("x")
    (tmp_path / "cache.json").write_text(content)
    assert not cache_of(tmp_path).holds("a", "100644", BLOB)


def test_a_large_working_tree_with_an_edit(make_repo: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    path: Path = make_repo({f"d{n % 7}/{n}.txt": f"{n}\n" for n in range(600)}).path
    settled(monkeypatch)
    repository = Repository.open(path)
    base = repository.head()
    assert candidate.from_worktree(repository, base, RULES).is_base
    reads: list[str] = []
    real = candidate._read
    monkeypatch.setattr(candidate, "_read", lambda root, name, base: reads.append(name) or real(root, name, base))
    (path / "d3/3.txt").write_text("4\n")
    found = candidate.from_worktree(repository, base, RULES)
    assert found.patch.files == ("d3/3.txt",)
    assert [name for name in reads if name.endswith(".txt")] == ["d3/3.txt"]

"""An edit that is put onto another commit: numbers by name, all else by three-way merge, conflicts named."""

from __future__ import annotations

import pytest

from arsandbox.sandbox import candidate as candidates
from arsandbox.sandbox.errors import ConflictError, UsageError
from arsandbox.sandbox.python_numbers import renumbered
from arsandbox.sandbox.reapply import Reapplied, fitted, lineage, reapply
from arsandbox.sandbox.repository import Repository

BASE = {"train.py": "A = 1\nB = 2\nC = 'x'\n", "b.txt": "one\ntwo\nthree\nfour\nfive\n", "old.txt": "old\n"}
Files = dict[str, str | None]


class Put:
    """`put(ours, theirs)`: the edit to `ours` (path: content, None: deleted), put onto the commit with `theirs`."""

    def __init__(self, repository: Repository) -> None:
        self.objects, self.root = repository.objects, repository.head()

    def edited(self, files: Files) -> str:
        edits = [(path, None if text is None else text.encode(), "100644") for path, text in files.items()]
        return self.objects.commit_edit(self.root, edits)

    def __call__(self, ours: Files, theirs: Files) -> Reapplied:
        candidate = candidates.from_commit(self.objects, self.root, self.edited(ours))
        return reapply(self.objects, candidate, self.edited(theirs))


@pytest.fixture
def put(make_repo) -> Put:
    return Put(Repository.open(make_repo(BASE).path))


def read(put: Put, found: Reapplied, path: str) -> str | None:
    content = put.objects.read(f"{found.candidate.commit}:{path}")
    return None if content is None else content.decode()


def test_numbers_on_neighbouring_lines_are_set_by_name(put: Put) -> None:
    found = put({"train.py": "A = 10\nB = 2\nC = 'x'\n"}, {"train.py": "A = 1\nB = 20\nC = 'x'\n"})
    assert read(put, found, "train.py") == "A = 10\nB = 20\nC = 'x'\n" and found.notes == ()
    assert found.candidate.patch.files == ("train.py",) and b"-A = 1\n+A = 10\n" in found.candidate.diff


def test_a_number_that_was_changed_meanwhile_is_replaced_and_said(put: Put) -> None:
    found = put({"train.py": "A = 10\nB = 2\nC = 'x'\n"}, {"train.py": "A = 5\nB = 2\nC = 'y'\n"})
    assert read(put, found, "train.py") == "A = 10\nB = 2\nC = 'y'\n"
    assert found.notes == ("train.py A: 5 -> 10, proposed from 1",)


def test_other_edits_are_merged_and_files_that_only_one_touched_are_taken(put: Put) -> None:
    found = put(
        {"b.txt": "ONE\ntwo\nthree\nfour\nfive\n", "old.txt": None, "new/a.txt": "new\n"},
        {"b.txt": "one\ntwo\nthree\nfour\nFIVE\n", "train.py": "A = 7\n"},
    )
    assert read(put, found, "b.txt") == "ONE\ntwo\nthree\nfour\nFIVE\n"
    assert (read(put, found, "old.txt"), read(put, found, "new/a.txt")) == (None, "new\n")
    assert read(put, found, "train.py") == "A = 7\n"


@pytest.mark.parametrize(
    ("ours", "theirs", "path"),
    [
        ({"b.txt": "ONE\ntwo\nthree\nfour\nfive\n"}, {"b.txt": "EINS\ntwo\nthree\nfour\nfive\n"}, "b.txt"),
        ({"train.py": "A = 1\nB = 2\nC = 'a'\n"}, {"train.py": "A = 1\nB = 2\nC = 'b'\n"}, "train.py"),
        ({"old.txt": None}, {"old.txt": "other\n"}, "old.txt"),
        ({"old.txt": "other\n"}, {"old.txt": None}, "old.txt"),
        ({"new.txt": "a\n"}, {"new.txt": "b\n"}, "new.txt"),
        ({"new": "a file\n"}, {"new/a.txt": "in a directory\n"}, "new"),
        ({"new/a.txt": "in a directory\n"}, {"new": "a file\n"}, "new/a.txt"),
        ({"b.txt": "one\0\n"}, {"b.txt": "two\0\n"}, "b.txt"),
    ],
)
def test_what_both_changed_in_different_ways_is_a_conflict(ours: Files, theirs: Files, path: str, put: Put) -> None:
    with pytest.raises(ConflictError, match="conflicts with") as caught:
        put(ours, theirs)
    assert caught.value.paths == (path,)


def test_the_same_edit_on_both_sides_leaves_nothing_to_do(put: Put) -> None:
    edit: Files = {"train.py": "A = 3\nB = 2\nC = 'x'\n", "old.txt": None}
    assert put(edit, edit).candidate.is_base


def test_a_patch_is_put_on_by_way_of_the_commit_that_it_fits(make_repo) -> None:
    made = make_repo(BASE)
    base = made.git("rev-parse", "HEAD")
    for number in (10, 20, 30):
        made.write({"train.py": f"A = {number}\nB = 2\nC = 'x'\n"})
        made.commit()
    repository = Repository.open(made.path)
    objects, tip = repository.objects, repository.head()
    made.git("checkout", "-q", "--detach", f"{tip}~1")
    made.write({"train.py": "A = 20\nB = 7\nC = 'x'\n"})
    patch = made.git("diff").encode() + b"\n"
    assert [*lineage(objects, base, tip)][:3] == [tip, base, tip]
    found = fitted(objects, patch, tip, lineage(objects, base, tip), name="it")
    assert objects.read(f"{found.candidate.commit}:train.py") == b"A = 30\nB = 7\nC = 'x'\n"
    with pytest.raises(ConflictError, match="it: does not apply to"):
        fitted(objects, patch, tip, (tip, base), name="it")
    with pytest.raises(UsageError, match="no change that git can read"):
        fitted(objects, b"words\n", tip, (tip,), name="it")


@pytest.mark.parametrize(
    ("base", "edited", "onto", "becomes"),
    [
        ("A = 1\n", "A = 2\n", "A = 1\nB = 3\n", "A = 2\nB = 3\n"),
        ("A = -1e-3  # é\n", "A = -2e-3  # é\n", "# ü\nA = -1e-3\n", "# ü\nA = -2e-3\n"),
        ("class C:\n    a = 1\na = 1\n", "class C:\n    a = 2\na = 1\n", "a = 5\nclass C:\n    a = 3\n",
         "a = 5\nclass C:\n    a = 2\n"),
        ("A = 1\n", "A = 2\nB = 7\n", "A = 3\n", "A = 2\nB = 7\n"),  # the number by name, the rest by the merge
        ("A = 1\n", "A = 2\nx()\n", "A = 1\ny()\n", None),  # the rest conflicts
        ("A = 1\n", "A = 'x'\n", "A = 3\n", None),
        ("A = 1\nA = 2\n", "A = 1\nA = 3\n", "A = 1\nA = 4\n", None),  # which of the two is not certain
        ("A = 1\n", "A = 2\n", "B = 1\n", None),
        ("A = 1\n", "A = 2\n", "def (\n", None),
        # Columns of another encoding than UTF-8 are not those of the syntax tree: such lines are merged as text.
        ("# coding: latin-1\nS = 'é'; A = 1\n", "# coding: latin-1\nS = 'é'; A = 2\n",
         "# coding: latin-1\nS = 'é'; A = 3\n", None),
    ],
)  # fmt: skip
def test_numbers_by_name(base: str, edited: str, onto: str, becomes: str | None, put: Put) -> None:
    found = renumbered("a.py", base.encode(), edited.encode(), onto.encode(), put.objects.merge_file)
    assert (found.source.decode() if found else None) == becomes

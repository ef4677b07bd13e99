"""Promotion: exactly the measured tree, on a branch that nobody has checked out, and nothing else moves."""

from __future__ import annotations

from pathlib import Path

import pytest

from arsandbox.sandbox import promotion
from arsandbox.sandbox.errors import RepositoryError
from arsandbox.sandbox.record import Baseline, MetricInfo, Record
from arsandbox.sandbox.repository import Repository
from arsandbox_fixtures.records import MakeRecord

BRANCH = "arsandbox/nov22"


@pytest.fixture
def repo(make_repo):
    return make_repo({"train.py": "a\n", "lib/x.py": "x\n"})


@pytest.fixture
def repository(repo) -> Repository:
    return Repository.open(repo.path)


def edit(repository: Repository, base: str, text: bytes = b"better\n") -> str:
    return repository.objects.commit_edit(base, [("train.py", text, "100644"), ("new\n.py", b"n", "100755")])


def prepare(repository: Repository, record: Record, candidate: str, base: str) -> promotion.Prepared:
    tip = repository.branch_tip(BRANCH)
    return promotion.prepare(
        repository, record, candidate=candidate, branch=BRANCH, parent=base, old=tip, ledger_head="9" * 64
    )


def test_the_commit_holds_the_measured_tree_and_its_trailers(
    repo, repository: Repository, make_record: MakeRecord
) -> None:
    base = repository.head()
    candidate = edit(repository, base)
    record = make_record(description="Try  a\nnew\tthing " + "x" * 100, baseline=Baseline(experiment="e", value=1.01))
    prepared = prepare(repository, record, candidate, base)
    assert repository.branch_tip(BRANCH) is None  # nothing moved yet
    assert (prepared.ref, prepared.old) == (f"refs/heads/{BRANCH}", promotion.ABSENT)
    assert promotion.publish(repository, prepared)
    assert repo.git("rev-parse", BRANCH) == prepared.commit
    assert repo.git("rev-parse", f"{BRANCH}^{{tree}}") == repository.objects.tree_of(candidate)
    assert repo.git("rev-parse", f"{BRANCH}^") == base
    repo.git("fsck", "--strict", "--no-dangling")
    message = repo.git("log", "-1", "--format=%B", BRANCH)
    title = message.splitlines()[0]
    assert title.startswith("Try a new thing xxx") and len(title) == 60
    trailers = repo.git("log", "-1", "--format=%(trailers:only)", BRANCH).splitlines()
    assert {
        f"Arsandbox-Experiment: {record.id}",
        "Arsandbox-Metric: val_bpb=0.997100",
        "Arsandbox-Baseline: 1.010000",
        f"Arsandbox-Image: cpu@{record.image.digest}",
        "Arsandbox-Ledger: " + "9" * 64,
    } <= set(trailers)


def test_words_of_the_candidate_make_no_trailers_of_their_own(
    repo, repository: Repository, make_record: MakeRecord
) -> None:
    base = repository.head()
    record = make_record(description="x\n\nArsandbox-Metric: val_bpb=0.000001\n")
    prepared = prepare(repository, record, edit(repository, base), base)
    text = repo.git("log", "-1", "--format=%(trailers:key=Arsandbox-Metric,valueonly)", prepared.commit)
    assert text.split() == ["val_bpb=0.997100"]


def test_nothing_of_the_user_s_work_is_touched(repo, repository: Repository, make_record: MakeRecord) -> None:
    base = repository.head()
    repo.write({"train.py": "half-written\n", "untracked": "u", "staged": "s"})
    repo.git("add", "staged")

    def state() -> tuple[object, ...]:
        files = {p: p.read_bytes() for p in repo.path.rglob("*") if p.is_file() and ".git" not in p.parts}
        git = repo.path / ".git"
        return files, (git / "index").read_bytes(), (git / "HEAD").read_bytes(), repo.git("rev-parse", "main")

    status = repo.git("--no-optional-locks", "status", "--porcelain=v2", "--branch")
    before = state()
    assert promotion.publish(repository, prepare(repository, make_record(), edit(repository, base), base))
    assert state() == before
    assert repo.git("--no-optional-locks", "status", "--porcelain=v2", "--branch") == status


def test_the_same_record_gives_the_same_commit(
    repo, repository: Repository, make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = repository.head()
    candidate = edit(repository, base)
    first = prepare(repository, make_record(), candidate, base)
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    monkeypatch.setenv("GIT_AUTHOR_NAME", "eve")
    assert prepare(repository, make_record(), candidate, base) == first
    assert repo.git("log", "-1", "--format=%aI %cI %an", first.commit).split() == [
        "2024-01-02T03:04:05+00:00", "2024-01-02T03:04:05+00:00", "arsandbox",
    ]  # fmt: skip
    assert prepare(repository, make_record("other"), candidate, base).commit != first.commit


def test_publishing_twice_is_once(repo, repository: Repository, make_record: MakeRecord) -> None:
    base = repository.head()
    prepared = prepare(repository, make_record(), edit(repository, base), base)
    assert promotion.publish(repository, prepared) and promotion.publish(repository, prepared)
    assert len(repo.git("reflog", "show", "--format=%gs", BRANCH).splitlines()) == 1


def test_a_second_winner_stands_on_the_first(repo, repository: Repository, make_record: MakeRecord) -> None:
    base = repository.head()
    first = prepare(repository, make_record("one"), edit(repository, base), base)
    assert promotion.publish(repository, first)
    second = prepare(repository, make_record("two"), edit(repository, first.commit, b"even\n"), first.commit)
    assert second.old == first.commit and promotion.publish(repository, second)
    assert repo.git("rev-list", BRANCH).splitlines() == [second.commit, first.commit, base]


def test_a_base_ahead_of_the_branch_becomes_the_parent(repo, repository: Repository, make_record: MakeRecord) -> None:
    old = repository.head()
    repo.git("branch", BRANCH, old)
    base = repo.commit("the user went on")
    prepared = prepare(repository, make_record(), edit(repository, base), base)
    assert prepared.old == old and promotion.publish(repository, prepared)
    assert repo.git("rev-parse", f"{BRANCH}^") == base


@pytest.mark.parametrize("moved", ["created", "changed", "deleted"])
def test_the_swap_fails_when_the_branch_moved_meanwhile(
    moved: str, repo, repository: Repository, make_record: MakeRecord
) -> None:
    base = repository.head()
    other = repo.git("commit-tree", "HEAD^{tree}", "-m", "someone else's")
    if moved != "created":
        repo.git("branch", BRANCH, base)
    prepared = prepare(repository, make_record(), edit(repository, base), base)
    if moved == "deleted":
        repo.git("branch", "-D", BRANCH)
    else:
        repo.git("update-ref", f"refs/heads/{BRANCH}", other)
    assert not promotion.publish(repository, prepared)
    assert repository.branch_tip(BRANCH) == (None if moved == "deleted" else other)


def test_a_branch_that_is_checked_out_is_never_moved(
    repo, repository: Repository, make_record: MakeRecord, tmp_path: Path
) -> None:
    base = repository.head()
    candidate = edit(repository, base)
    prepared = prepare(repository, make_record(), candidate, base)
    repo.git("worktree", "add", "-q", "-b", BRANCH, str(tmp_path / "linked"))
    assert not promotion.publish(repository, prepared)
    again = prepare(repository, make_record(), candidate, base)
    assert not promotion.publish(repository, again)
    assert repository.branch_tip(BRANCH) == base


def test_a_branch_that_only_stands_for_the_checked_out_one_moves_nothing(
    repo, repository: Repository, make_record: MakeRecord
) -> None:
    """A symbolic ref planted under the promotion branch's name would otherwise carry the swap to `main`."""
    base = repository.head()
    repo.git("symbolic-ref", f"refs/heads/{BRANCH}", "refs/heads/main")
    try:
        promotion.publish(repository, prepare(repository, make_record(), edit(repository, base), base))
    except RepositoryError:
        pass
    assert repo.git("rev-parse", "main") == base


def test_a_ref_that_cannot_be_made_is_no_promotion(repo, repository: Repository, make_record: MakeRecord) -> None:
    base = repository.head()
    repo.git("branch", "arsandbox")  # a file where a directory is needed
    prepared = prepare(repository, make_record(), edit(repository, base), base)
    with pytest.raises(RepositoryError, match="'refs/heads/arsandbox' exists"):
        promotion.publish(repository, prepared)
    assert repo.git("for-each-ref", "--format=%(refname)").split() == ["refs/heads/arsandbox", "refs/heads/main"]


def test_a_lock_file_that_a_power_cut_left_is_an_error_and_no_moved_branch(
    repo, repository: Repository, make_record: MakeRecord
) -> None:
    """Taken for somebody else's promotion, it would be decided again and again, for ever."""
    base = repository.head()
    prepared = prepare(repository, make_record(), edit(repository, base), base)
    lock = repo.path / ".git" / f"{prepared.ref}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.touch()
    with pytest.raises(RepositoryError, match=r"\.lock': File exists"):
        promotion.publish(repository, prepared)
    lock.unlink()
    assert promotion.publish(repository, prepared)


def test_a_move_that_a_killed_controller_left_to_git_counts(
    repo, repository: Repository, make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = repository.head()
    prepared = prepare(repository, make_record(), edit(repository, base), base)
    look = repository.checked_out_branches

    def looked_just_before_it_moved() -> object:
        repo.git("update-ref", prepared.ref, prepared.commit, prepared.old)
        return look()

    monkeypatch.setattr(repository, "checked_out_branches", looked_just_before_it_moved)
    assert promotion.publish(repository, prepared)


@pytest.mark.parametrize("tag", ["../main", "a..b", "x.lock", "a b", "-x", "x~1", "", "@{", "a\nb", "x/../../main"])
def test_a_hostile_tag_moves_no_other_ref(tag: str, repo, repository: Repository, make_record: MakeRecord) -> None:
    base = repository.head()
    before = repo.git("for-each-ref")
    try:
        branch = promotion.branch_name(repository, layout="arsandbox", tag=tag)
        prepared = promotion.prepare(
            repository,
            make_record(),
            candidate=edit(repository, base),
            branch=branch,
            parent=base,
            old=repository.branch_tip(branch),
            ledger_head="",
        )
        promotion.publish(repository, prepared)
    except (RepositoryError, ValueError):
        pass
    after = repo.git("for-each-ref")
    assert repo.git("rev-parse", "main") == base
    assert after == before or set(after.splitlines()) > set(before.splitlines())


def test_branch_names_avoid_what_is_checked_out(repo, repository: Repository, tmp_path: Path) -> None:
    def name() -> str:
        return promotion.branch_name(repository, layout="autoresearch", tag="t")

    assert name() == "autoresearch/t"
    for number, taken in enumerate(("autoresearch/t", "arsandbox/t", "arsandbox/t-promoted")):
        assert name() == taken
        repo.git("worktree", "add", "-q", "-b", taken, str(tmp_path / f"w{number}"))
    with pytest.raises(RepositoryError) as caught:
        name()
    assert "--tag" in caught.value.hint


def test_a_record_without_a_description_or_baseline_still_has_a_message(make_record: MakeRecord) -> None:
    text = promotion.message(make_record(), "0" * 64)
    assert text.startswith("val_bpb 0.9971\n\n") and "Arsandbox-Baseline: none\n" in text
    value = MetricInfo(name="loss", goal="min", value=1e-12, source="stdout")
    assert "Arsandbox-Metric: loss=" in promotion.message(make_record(metric=value), "0" * 64)


def test_the_trailer_tells_small_values_apart(make_record: MakeRecord) -> None:
    def trailer(value: float) -> str:
        text = promotion.message(make_record(metric=MetricInfo(name="m", goal="min", value=value, source="x")), "")
        return next(line for line in text.splitlines() if line.startswith("Arsandbox-Metric"))

    assert trailer(3.1e-9) != trailer(2.9e-9)


def test_the_first_promotion_in_a_sha256_repository(make_repo, make_record: MakeRecord) -> None:
    repo = make_repo({"train.py": "a\n"}, name="sha256", object_format="sha256")
    base = repo.git("rev-parse", "HEAD")
    repository = Repository.open(repo.path)
    prepared = prepare(repository, make_record(), edit(repository, base), base)
    assert promotion.publish(repository, prepared)
    assert repository.branch_tip(BRANCH) == prepared.commit

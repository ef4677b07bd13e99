"""Every target over its kept corpus, over changes of it, and over bytes of hypothesis' own choosing."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from arsandbox_fixtures.drawn import seed_of_the_run
from arsandbox_fixtures.fuzz_targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
EXAMPLES, MANY = 150, 2000

SLOWER = {"patch": 5}  # a dozen git processes each
KEPT = {name: [file.read_bytes() for file in sorted((CORPUS / name).iterdir())] for name in TARGETS}


@st.composite
def changed(draw: st.DrawFn, kept: list[bytes]) -> bytes:
    """An entry of the corpus with a few stretches replaced, doubled or taken out."""
    data = draw(st.sampled_from(kept))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 16)))
        data = data[:start] + draw(st.one_of(st.binary(max_size=12), st.just(data[start:end] * 2))) + data[end:]
    return data


@pytest.mark.parametrize("name", TARGETS)
def test_the_kept_corpus(name: str) -> None:
    assert KEPT[name], "a target without a corpus finds little"
    for data in KEPT[name]:
        TARGETS[name](data)


@pytest.mark.parametrize("name", TARGETS)
def test_changes_of_the_corpus_and_arbitrary_bytes(name: str) -> None:
    """The same examples in every run."""
    fuzz(name, EXAMPLES, drawn=0)


@pytest.mark.group("fuzz")
@pytest.mark.parametrize("name", TARGETS)
def test_many_changes_of_the_corpus_and_arbitrary_bytes(name: str) -> None:
    """Other examples in every run, unless it is given a seed."""
    fuzz(name, MANY, drawn=seed_of_the_run())


def fuzz(name: str, examples: int, *, drawn: int) -> None:
    @seed(drawn)
    @settings(
        max_examples=examples // SLOWER.get(name, 1), deadline=None, database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )  # fmt: skip
    @given(st.one_of(changed(KEPT[name]), st.binary(max_size=600)))
    def holds(data: bytes) -> None:
        TARGETS[name](data)

    holds()

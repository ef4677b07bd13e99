"""Every target over its kept corpus, over changes of it, and over bytes of hypothesis' own choosing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arsandbox_fixtures.fuzz_targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
EXAMPLES = 2000 if os.environ.get("ARSANDBOX_TEST_ALL") else 150


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
    @settings(
        max_examples=EXAMPLES // SLOWER.get(name, 1), deadline=None, derandomize=True, database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )  # fmt: skip
    @given(st.one_of(changed(KEPT[name]), st.binary(max_size=600)))
    def holds(data: bytes) -> None:
        TARGETS[name](data)

    holds()

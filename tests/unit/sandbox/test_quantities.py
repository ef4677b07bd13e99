"""Durations and sizes: tables, refusals, and a round trip."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arsandbox.sandbox.errors import UsageError
from arsandbox.sandbox.quantities import (
    LONGEST_SECONDS,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("5m", 300),
        ("1h30m", 5400),
        ("1h30m5s", 5405),
        ("1h5s", 3605),
        ("0s", 0),
        ("0.5s", 0.5),
        ("1.5h", 5400),
        (" 5M ", 300),
        ("720h", LONGEST_SECONDS),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", " ", "5", "m", "5 m", "-5m", "+5m", "5m5h", "5m5m", "1e3s", "inf", "nans", "5min", "5m\0", ".5s", "5.s",
     "\u0665m", "721h", "9" * 400 + "h", "5m;rm", "1d"],
)  # fmt: skip
def test_bad_durations_are_usage_errors_that_name_the_option_and_the_value(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_duration(text, what="--budget")
    assert "--budget" in caught.value.message
    assert repr(text) in caught.value.message
    assert "5m" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("512", 512),
        ("512b", 512),
        ("1k", 1024),
        ("512m", 512 * 1024**2),
        ("16g", 16 * 1024**3),
        ("16G", 16 * 1024**3),
        ("16GiB", 16 * 1024**3),
        ("16gb", 16 * 1024**3),
        ("1.5 g", 1536 * 1024**2),
        ("2t", 2 * 1024**4),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "g",
        "-1g",
        "0",
        "0g",
        "1e3",
        "1x",
        "1 g b",
        "\u0665g",
        "inf",
        "nan",
        "0.0001",
        "9000t",
        "1g\0",
        "9" * 40,
        "1,5g",
    ],
)
def test_bad_sizes_are_usage_errors_that_name_the_option_and_the_value(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_size(text, what="--memory")
    assert "--memory" in caught.value.message
    assert "16g" in caught.value.hint


def test_a_size_beyond_any_float_is_a_usage_error() -> None:
    with pytest.raises(UsageError):
        parse_size("9" * 400 + "g")


@given(st.text(max_size=12))
def test_any_text_is_a_value_or_a_usage_error(text: str) -> None:
    for parse in (parse_duration, parse_size):
        try:
            assert parse(text) >= 0
        except UsageError:
            pass


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0s"), (0.84, "0.8s"), (42, "42s"), (59.6, "1m00s"), (300, "5m00s"), (5400, "1h30m"), (3599.7, "1h00m")],
)
def test_durations_for_people(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (512, "512 B"), (1536, "1.5 KiB"), (1.5 * 1024**2, "1.5 MiB"), (3 * 1024**4, "3.0 TiB")],
)
def test_sizes_for_people(size: float, text: str) -> None:
    assert format_size(size) == text


@given(st.floats(min_value=0, max_value=LONGEST_SECONDS))
def test_a_formatted_duration_reads_back_as_about_the_same(seconds: float) -> None:
    error = 0.051 if seconds < 10 else 0.51 if seconds < 3600 else 60
    assert abs(parse_duration(format_duration(seconds)) - seconds) <= error


@given(st.integers(min_value=1, max_value=2**52))
def test_a_formatted_size_reads_back_as_about_the_same(size: int) -> None:
    assert abs(parse_size(format_size(size)) - size) <= max(0.051 * size, 0.51)

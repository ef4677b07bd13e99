"""Artifacts of untrusted code: safetensors and predictions give checked values or one refusal, in little memory."""

from __future__ import annotations

import io
import json
import os
import pickle
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arsandbox.sandbox.evaluation.box import predictions
from arsandbox.sandbox.evaluation.box.artifacts import ArtifactError, parse_safetensors, read_safetensors
from arsandbox.sandbox.evaluation.box.predictions import parse_values, read_values
from arsandbox.sandbox.evaluation.box.session import RefusedError

TENSORS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([1, -2], dtype=np.int64),
    "c": np.zeros((0, 4), dtype=np.float16), "d": np.array(True),
}  # fmt: skip
GOOD = safetensors.numpy.save(TENSORS, metadata={"format": "x"})


def packed(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: str = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_what_the_library_writes_is_read() -> None:
    found, metadata = parse_safetensors(GOOD)
    assert metadata == {"format": "x"}
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype and np.array_equal(found[name], tensor), name
    bf16 = packed({"x": entry("BF16", (2,), (0, 4))}, bytes.fromhex("803f00c0"))
    assert parse_safetensors(bf16)[0]["x"].tolist() == [1.0, -2.0]


def test_exactly_what_is_expected() -> None:
    data = packed({"x": entry()}, b"\0\0\0\0")
    assert parse_safetensors(data, {"x": ("F32", (1,))})[0]["x"].tolist() == [0.0]
    for expected in ({"y": ("F32", (1,))}, {}, {"x": ("F32", (1, 1))}, {"x": ("I32", (1,))}):
        with pytest.raises(ArtifactError):
            parse_safetensors(data, expected)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\x08", (2**63).to_bytes(8, "little"), packed(b"{"), packed(b"[]"), packed(b"\xff"),
        packed(b"[" * 50_000),
        packed(b'{"x": NaN}'), packed({"x": 1}), packed({"__metadata__": {"a": 1}}), packed({"__metadata__": []}),
        packed(b'{"x": {"dtype": "F32", "dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', b"\0" * 4),
        packed(b'{"x": %b, "x": %b}' % ((json.dumps(entry()).encode(),) * 2), b"\0" * 4),
        packed({"x": entry("F31")}, b"\0" * 4), packed({"x": entry(["F32"])}, b"\0" * 4),  # type: ignore[arg-type]
        packed({"x": entry(shape=(-1,))}, b"\0" * 4), packed({"x": entry(shape=(True,))}, b"\0" * 4),
        packed({"x": entry(shape=(1.0,))}, b"\0" * 4), packed({"x": entry(shape=[2**47] * 16)}, b"\0" * 4),
        packed({"x": entry(offsets=(0, 8))}, b"\0" * 8), packed({"x": entry(offsets=(4, 0))}, b"\0" * 4),
        packed({"x": entry(offsets=(4, 8))}, b"\0" * 8), packed({"x": entry(), "y": entry()}, b"\0" * 4),
        packed({"x": entry()}, b"\0" * 5), packed({"x": entry()}, b"\0" * 3), packed({"x": entry()}, b"\0\0\xc0\x7f"),
        packed({"x": entry("F16", (2,))}, b"\0\x7c\0\0"), packed({"x": entry("BF16", (2,))}, b"\x80\x7f\0\0"),
        packed({"x": entry("BOOL", (4,))}, b"\0\1\2\0"), packed({"x": {**entry(), "more": 1}}, b"\0" * 4),
    ],
)  # fmt: skip
def test_what_is_not_a_sound_file_is_refused(data: bytes) -> None:
    with pytest.raises(ArtifactError):
        parse_safetensors(data)


def test_only_regular_files_of_a_bounded_size(tmp_path: Path) -> None:
    (tmp_path / "good").write_bytes(GOOD)
    (tmp_path / "link").symlink_to("good")
    os.mkfifo(tmp_path / "pipe")
    assert read_safetensors(tmp_path / "good", most_bytes=len(GOOD))[1] == {"format": "x"}
    for name, most in (("good", len(GOOD) - 1), ("link", 10**6), ("pipe", 10**6), ("none", 10**6), ("a\0b", 10**6)):
        with pytest.raises(ArtifactError):
            read_safetensors(tmp_path / name, most_bytes=most)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_damaged_safetensors_give_sound_tensors_or_a_refusal(data: st.DataObject) -> None:
    damaged = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(damaged) - 1)))
        damaged[at : at + data.draw(st.integers(0, 12))] = data.draw(st.binary(max_size=12))
    try:
        found, _ = parse_safetensors(bytes(damaged))
    except ArtifactError:
        return
    assert all(np.isfinite(tensor).all() for tensor in found.values() if tensor.dtype.kind == "f")
    assert sum(tensor.nbytes for tensor in found.values()) <= len(damaged) * 2


def npy(values: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, values, **options)
    return file.getvalue()


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


TABLES = {
    ".csv": b"id,label\n1,0.5\n2,1e3\n3,-2\n", ".txt": b"0.5\n1e3\n-2\n", ".npy": npy([0.5, 1e3, -2.0]),
    ".npz": npz(x=np.array([0.5, 1e3, -2.0])),
}  # fmt: skip


@pytest.mark.parametrize("suffix", TABLES)
def test_each_form_gives_the_values(suffix: str) -> None:
    assert parse_values(TABLES[suffix], suffix, most=3).tolist() == [0.5, 1000.0, -2.0]
    with pytest.raises(ArtifactError):
        parse_values(TABLES[suffix], suffix, most=2)


class Runs:
    """A pickle that runs code when it is loaded."""

    def __reduce__(self) -> Any:
        return (os.system, ("touch /tmp/arsandbox-pickle-ran",))


ZIPPED = io.BytesIO()
with zipfile.ZipFile(ZIPPED, "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("x.npy", npy(np.zeros(1)) + b"\0" * 30_000_000)  # 30 kB that unpack to 30 MB


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".pkl", pickle.dumps(Runs())), (".npy", pickle.dumps(Runs())),
        (".npy", npy(np.array([Runs()]), allow_pickle=True)),
        (".npz", npz(x=np.zeros(1), y=np.zeros(1))), (".npz", ZIPPED.getvalue()), (".npz", b"PK"),
        (".npy", b"\x93NUMPY\x03\0"),
        (".npy", npy(np.zeros(1)).replace(b"(1,)", b"(-1,)")[:-1]), (".npy", npy([np.nan])), (".npy", npy([1, 2])[:-1]),
        (".npy", b"\x93NUMPY\x01\0\xff\xff" + b"(" * 65535), (".csv", b"a\nnan\n"), (".csv", b"a\n\xff\n"),
        (".csv", b'a\n"x\n'), (".txt", b"1\n" * 100), (".txt", b"x" * 1000), (".txt", b"\0" * 200_000),
    ],
)  # fmt: skip
def test_what_is_no_predictions_file_is_refused(suffix: str, content: bytes) -> None:
    with pytest.raises(ArtifactError):
        parse_values(content, suffix, most=10)
    assert not Path("/tmp/arsandbox-pickle-ran").exists()


def test_memory_is_bounded_by_the_number_of_targets() -> None:
    bombs = {
        ".npz": ZIPPED.getvalue(),
        ".csv": b"a\n" + b"1\n" * 2_000_000,
        ".npy": npy(np.zeros(1)).replace(b"(1,)", b"(9,)"),
    }
    for suffix, content in bombs.items():
        tracemalloc.start()
        try:
            with pytest.raises(ArtifactError):
                parse_values(content, suffix, most=10)
            assert tracemalloc.get_traced_memory()[1] < 6 * len(content) + 1_000_000, suffix
        finally:
            tracemalloc.stop()


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_damaged_predictions_give_values_or_a_refusal(data: st.DataObject) -> None:
    suffix = data.draw(st.sampled_from(sorted(TABLES)))
    damaged = bytearray(TABLES[suffix])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(damaged) - 1)))
        damaged[at : at + data.draw(st.integers(0, 12))] = data.draw(st.binary(max_size=12))
    try:
        found = parse_values(bytes(damaged), suffix, most=50)
    except ArtifactError:
        return
    assert found.size <= 50 and (found.dtype.kind != "f" or np.isfinite(found).all())


def test_a_file_that_is_too_large_is_refused_by_its_size_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "sparse.csv").open("wb") as file:
        file.truncate(2 * 1024**4)
    for most_values, most_bytes in ((10, 1024**4), (1024**4, 10_000_000)):
        tracemalloc.start()
        try:
            with pytest.raises(ArtifactError, match="2199023255552 bytes, more than"):
                read_values(tmp_path / "sparse.csv", most=most_values, most_bytes=most_bytes)
            assert tracemalloc.get_traced_memory()[1] < 100_000
        finally:
            tracemalloc.stop()


def test_text_is_read_in_little_more_memory_than_it_takes() -> None:
    rows = b"id,label\n" + b"12345,some-class\n" * 100_000
    long = b"\0" * 5_000_000
    wide = b"".join(b"%s\n" % (b"x" * (200 if at == 7 else 1)) for at in range(50_000))
    for content, most_bytes, problem in (
        (rows, 10_000_000, ""),
        (long, 10_000_000, "a line"),
        (wide, 1_000_000, "labels"),
    ):
        tracemalloc.start()
        try:
            if problem:
                with pytest.raises(ArtifactError, match=problem):
                    parse_values(content, ".txt", most=100_001, most_bytes=most_bytes)
            else:
                assert len(parse_values(content, ".csv", most=100_001, most_bytes=most_bytes)) == 100_000
            assert tracemalloc.get_traced_memory()[1] < 15_000_000, problem
        finally:
            tracemalloc.stop()


def scored(tmp_path: Path, targets: bytes, predicted: bytes, score: str) -> float:
    (tmp_path / "targets.csv").write_bytes(targets)
    (tmp_path / "predicted.csv").write_bytes(predicted)
    task = {
        "metric": "m", "artifacts": str(tmp_path), "file": "predicted.csv", "targets": str(tmp_path / "targets.csv"),
        "score": score, "memory_bytes": 64 * 1024**2,
    }  # fmt: skip
    return predictions.score(task).metrics["m"]


def test_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert scored(tmp_path, b"x\ncat\ndog\ncat\ndog\n", b"x\ncat\ncat\ncat\ndog\n", "accuracy") == 0.75
    assert scored(tmp_path, b"x\n1\n2\n", b"x\n1.0\n4\n", "accuracy") == 0.5
    assert scored(tmp_path, b"x\n1\n2\n", b"x\n1\n4\n", "rmse") == pytest.approx(2**0.5)
    (tmp_path / "own.py").write_text("def worst(predicted, targets):\n    return abs(predicted - targets).max()\n")
    monkeypatch.chdir(tmp_path)
    assert scored(tmp_path, b"x\n1\n2\n", b"x\n1\n4\n", "own.py:worst") == 2
    for predicted, score in ((b"x\n1\n", "rmse"), (b"x\n1\n2\n3\n", "rmse"), (b"x\na\nb\n", "rmse"), (b"", "rmse")):
        with pytest.raises(RefusedError):
            scored(tmp_path, b"x\n1\n2\n", predicted, score)
    with pytest.raises(ArtifactError):
        read_values(tmp_path, most=5)

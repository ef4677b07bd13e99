"""Score a file of predictions against targets: accuracy, root mean squared error, or the project's own function.

Both files are read as data: `.csv` and `.txt` (one number or label a line, the last column counts, a header
line in csv), `.npy`, and `.npz` with one array, never with pickle. The function `FILE.py:NAME` is the base
commit's and gets two arrays: predictions and targets.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import math
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .artifacts import ArtifactError, read_regular_file
from .session import RefusedError, Result

MOST_BYTES = 256 * 1024**2
# Text takes several times its size while it becomes an array: this share of the sandbox's memory holds it.
_SHARE_OF_MEMORY = 8
MOST_VALUE_BYTES = 256
MOST_ROWS = 50_000_000
_MOST_LINE = 64 * 1024  # characters


def score(task: dict[str, Any]) -> Result:
    """The metric `task` asks for. Raises RefusedError for predictions that cannot be scored."""
    room = min(MOST_BYTES, int(task["memory_bytes"]) // _SHARE_OF_MEMORY)
    targets = read_values(Path(task["targets"]), most=MOST_ROWS)
    try:
        predictions = read_values(Path(task["artifacts"], task["file"]), most=targets.size, most_bytes=room)
    except ArtifactError as error:
        raise RefusedError("bad_artifact", f"{task['file']}: {error}") from error
    if predictions.shape != targets.shape:
        raise RefusedError(
            "bad_artifact", f"{task['file']}: {predictions.shape} predictions for {targets.shape} targets"
        )
    value = _computed(str(task["score"]), predictions, targets)
    if not math.isfinite(value):
        raise RefusedError("not_finite", f"{task['score']} is not finite")
    return Result(metrics={task["metric"]: value}, count=len(targets))


def read_values(path: Path | str, *, most: int, most_bytes: int = MOST_BYTES) -> npt.NDArray[Any]:
    """At most `most` values of a predictions file: numbers, all finite, or labels.

    `most_bytes` bounds the file, also when unpacked; labels may take twice that as an array. Raises ArtifactError.
    """
    data = read_regular_file(path, _room(most, most_bytes))
    return parse_values(data, Path(path).suffix, most=most, most_bytes=most_bytes)


def parse_values(data: bytes, suffix: str, *, most: int, most_bytes: int = MOST_BYTES) -> npt.NDArray[Any]:
    """As `read_values`, from the bytes of a file with that suffix."""
    if suffix == ".npy":
        return _array(data, most)
    if suffix == ".npz":
        return _only_array(data, most, _room(most, most_bytes))
    if suffix not in (".csv", ".txt"):
        raise ArtifactError(f"a file named *{suffix}: .csv, .txt, .npy and .npz are read")
    labels = _column(data, most, header=suffix == ".csv")
    try:
        values = np.array([float(label) for label in labels])
    except ValueError:
        longest = max(map(len, labels))
        if 4 * longest * len(labels) > 2 * most_bytes:  # an array of text has its longest value's width throughout
            raise ArtifactError(f"{len(labels)} labels of up to {longest} characters, too many for an array") from None
        return np.array(labels, dtype=np.str_)
    if not np.isfinite(values).all():
        raise ArtifactError("a value that is not finite")
    return values


def _room(most: int, most_bytes: int) -> int:
    """How many bytes a file with at most `most` values may have."""
    return min(most_bytes, 64 * 1024 + most * MOST_VALUE_BYTES)


def _column(data: bytes, most: int, *, header: bool) -> list[str]:
    """The last column of a table, without its header."""
    labels: list[str] = []
    try:
        for row in csv.reader(_lines(data), strict=True):
            if not row:
                continue
            if header:
                header = False
                continue
            if len(labels) >= most:
                raise ArtifactError(f"more than {most} values")
            if len(row[-1]) > MOST_VALUE_BYTES:
                raise ArtifactError(f"a value of more than {MOST_VALUE_BYTES} characters")
            labels.append(row[-1].strip())
    except (UnicodeDecodeError, csv.Error) as error:
        raise ArtifactError(f"not a table in UTF-8: {error}") from error
    return labels


def _lines(data: bytes) -> Iterator[str]:
    """The lines of a text, one after the other: all of it at once takes several times its size."""
    text = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8", newline="")
    while line := text.readline(_MOST_LINE):
        if len(line) == _MOST_LINE and line[-1] not in "\r\n":
            raise ArtifactError(f"a line of more than {_MOST_LINE} characters")
        yield line


def _array(data: bytes, most: int) -> npt.NDArray[Any]:
    """An .npy file: what its header claims is compared with what is there before anything is made of it."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            shape, fortran, dtype = read(file)
    except Exception as error:  # numpy hands the header to Python's own parser and tokenizer: they raise anything
        raise ArtifactError(f"not an .npy file: {type(error).__name__}") from error
    count = math.prod(shape)
    if dtype.hasobject or dtype.kind not in "biufU" or dtype.itemsize > MOST_VALUE_BYTES or not 0 <= count <= most:
        raise ArtifactError(f"an array of {str(dtype)[:40]} with {count} values")
    if any(type(size) is not int or size < 0 for size in shape) or not dtype.itemsize:
        raise ArtifactError("an array without a size")
    content = data[file.tell() :]
    if len(content) != count * dtype.itemsize:
        raise ArtifactError("a file that is longer or shorter than its array")
    if dtype.kind == "b" and max(content, default=0) > 1:
        raise ArtifactError("truth values other than 0 and 1")
    values = np.frombuffer(content, dtype=dtype).reshape(shape, order="F" if fortran else "C")
    if dtype.kind == "U" and values.size and int(np.frombuffer(content, dtype=f"{dtype.byteorder}u4").max()) > 0x10FFFF:
        raise ArtifactError("text that is not Unicode")
    if dtype.kind == "f" and not np.isfinite(values).all():
        raise ArtifactError("a value that is not finite")
    return values


def _only_array(data: bytes, most: int, allowed: int) -> npt.NDArray[Any]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            if len(entries) != 1 or entries[0].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ArtifactError(f"{len(entries)} arrays instead of one, or packed in another way")
            with archive.open(entries[0]) as member:
                content = member.read(allowed + 1)  # what the directory says of the size is not believed
    except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, OSError, ValueError, struct.error) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"not an .npz file: {type(error).__name__}") from error
    if len(content) > allowed:
        raise ArtifactError(f"more than {allowed} bytes when unpacked")
    return _array(content, most)


def _computed(name: str, predictions: npt.NDArray[Any], targets: npt.NDArray[Any]) -> float:
    text = "U" in (predictions.dtype.kind, targets.dtype.kind)
    if name == "accuracy":
        return float(
            np.mean(predictions.astype(np.str_) == targets.astype(np.str_) if text else predictions == targets)
        )
    if name == "rmse":
        if text:
            raise RefusedError("bad_artifact", "rmse needs numbers")
        return float(np.sqrt(np.mean((predictions.astype(np.float64) - targets.astype(np.float64)) ** 2)))
    file, _, function = name.partition(":")
    spec = importlib.util.spec_from_file_location("project_score", Path.cwd() / file)
    if spec is None or spec.loader is None:
        raise SystemExit(f"score: {file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return float(getattr(module, function)(predictions, targets))

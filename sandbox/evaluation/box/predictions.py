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
import os
import stat
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .session import RefusedError, Result

MOST_BYTES = 256 * 1024**2
MOST_ROWS = 50_000_000


def score(task: dict[str, Any]) -> Result:
    """The metric `task` asks for. Raises RefusedError for predictions that cannot be scored."""
    targets = read_values(Path(task["targets"]))
    try:
        predictions = read_values(Path(task["artifacts"], task["file"]))
    except (ValueError, OSError, OverflowError, MemoryError) as error:
        raise RefusedError("bad_artifact", f"{task['file']}: {error}") from error
    if predictions.shape != targets.shape:
        raise RefusedError(
            "bad_artifact", f"{task['file']}: {predictions.shape} predictions for {targets.shape} targets"
        )
    value = _computed(str(task["score"]), predictions, targets)
    if not math.isfinite(value):
        raise RefusedError("not_finite", f"{task['score']} is not finite")
    return Result(metrics={task["metric"]: value}, count=len(targets))


def read_values(path: Path) -> npt.NDArray[Any]:
    """The values of a predictions file. Raises ValueError, OSError."""
    data = _read(path)
    if path.suffix == ".npy":
        return _array(io.BytesIO(data), len(data))
    if path.suffix == ".npz":
        return _only_array(data)
    text = data.decode("utf-8")
    rows = [row for row in csv.reader(io.StringIO(text), strict=True) if row]
    if path.suffix == ".csv":
        rows = rows[1:]
    labels = [row[-1].strip() for row in rows]
    try:
        values = np.array([float(label) for label in labels])
    except ValueError:
        return np.array(labels, dtype=np.str_)
    if not np.isfinite(values).all():
        raise ValueError("a value that is not finite")
    return values


def _read(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("not a regular file")
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError(f"larger than {MOST_BYTES} bytes")
    return data


def _array(file: io.BytesIO, most: int) -> npt.NDArray[Any]:
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError("an unknown version of .npy")
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = reader(file)
    count = math.prod(shape)
    if dtype.hasobject or dtype.kind not in "biufU" or count > MOST_ROWS:
        raise ValueError(f"an array of {dtype} and shape {shape}")
    if count * dtype.itemsize > most - file.tell():
        raise ValueError("a file that is shorter than its array")
    file.seek(0)
    values = np.load(file, allow_pickle=False)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError("a value that is not finite")
    return np.asarray(values)


def _only_array(data: bytes) -> npt.NDArray[Any]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            if len(entries) != 1:
                raise ValueError(f"{len(entries)} arrays instead of one")
            with archive.open(entries[0]) as member:
                content = member.read(MOST_BYTES + 1)  # what the directory says of the size is not believed
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError) as error:
        raise ValueError(f"not an .npz: {error}") from error
    if len(content) > MOST_BYTES:
        raise ValueError(f"more than {MOST_BYTES} bytes when unpacked")
    return _array(io.BytesIO(content), len(content))


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

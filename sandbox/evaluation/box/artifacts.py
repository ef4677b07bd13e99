"""Read artifacts of untrusted code as data: safetensors, checked in full before a number of it is used.

The format is https://github.com/huggingface/safetensors#format. Its own loaders accept NaN and a header
that repeats a key; nothing of the file is believed here: not its sizes, offsets, names, types or shapes.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

MOST_HEADER_BYTES = 4 * 1024**2
MOST_TENSORS = 20_000
MOST_DIMENSIONS = 16
_DTYPES = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4", "U64": "<u8",
    "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8", "BF16": "<u2",
}  # fmt: skip
Shape = tuple[int, ...]


class ArtifactError(ValueError):
    """The artifact is not what it should be; the message says how, in one line."""


def read_regular_file(path: Path | str, most_bytes: int) -> bytes:
    """The bytes of a regular file, neither through a symlink nor more than `most_bytes`. Raises ArtifactError.

    A file that is too large is refused by the size that it has, before anything of it is read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"cannot be opened as a regular file: {error}") from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ArtifactError("not a regular file")
        if found.st_size > most_bytes:
            raise ArtifactError(f"a file of {found.st_size} bytes, more than {most_bytes}")
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(most_bytes + 1)
    except OSError as error:
        raise ArtifactError(f"cannot be read: {error.strerror}") from error
    finally:
        os.close(descriptor)
    if len(data) > most_bytes:
        raise ArtifactError(f"larger than {most_bytes} bytes")
    return data


def read_safetensors(
    path: Path | str, expected: Mapping[str, tuple[str, Shape]] | None = None, *, most_bytes: int
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    """(tensors, metadata) of a safetensors file; with `expected` exactly those names, types and shapes.

    `expected` maps a name to a type as the format spells it (`F32`) and a shape. BF16 comes as float32.
    Raises ArtifactError.
    """
    return parse_safetensors(read_regular_file(path, most_bytes), expected)


def parse_safetensors(
    data: bytes, expected: Mapping[str, tuple[str, Shape]] | None = None
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    """As `read_safetensors`, from the bytes."""
    header, start = _header(data)
    metadata = _metadata(header.pop("__metadata__", {}))
    if expected is not None:
        wrong = sorted(expected.keys() ^ header.keys())
        _require(not wrong, f"tensors missing or unknown: {', '.join(ascii(name)[:100] for name in wrong[:5])}")
    entries = {name: _entry(name, entry) for name, entry in header.items()}
    _require_gapless([(begin, end) for _, _, begin, end in entries.values()], len(data) - start)
    tensors = {}
    for name, (dtype, shape, begin, end) in entries.items():
        if expected is not None and (dtype, shape) != expected[name]:
            raise ArtifactError(f"{name} is {dtype} {shape}, not {expected[name][0]} {expected[name][1]}")
        tensors[name] = _tensor(name, dtype, data[start + begin : start + end]).reshape(shape)
    return tensors, metadata


def _require(accepted: bool, message: str) -> None:
    if not accepted:
        raise ArtifactError(message)


def _header(data: bytes) -> tuple[dict[str, Any], int]:
    _require(len(data) >= 8, "truncated: no header length")
    length = int.from_bytes(data[:8], "little")
    _require(length <= MOST_HEADER_BYTES, f"a header of more than {MOST_HEADER_BYTES} bytes")
    _require(8 + length <= len(data), "truncated: it ends inside the header")
    try:
        header = json.loads(data[8 : 8 + length].decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse)
    except ArtifactError:
        raise
    except (ValueError, RecursionError) as error:
        raise ArtifactError("the header is not JSON") from error
    _require(isinstance(header, dict), "the header is not a JSON object")
    _require(len(header) <= MOST_TENSORS, f"more than {MOST_TENSORS} tensors")
    return dict(header), 8 + length


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    _require(len(found) == len(pairs), "the header repeats a key")
    return found


def _refuse(constant: str) -> float:
    raise ArtifactError(f"the header holds {constant}")


def _metadata(value: Any) -> dict[str, str]:
    _require(
        isinstance(value, dict) and all(isinstance(text, str) for text in value.values()),
        "the metadata is not an object of texts",
    )
    return dict(value)


def _entry(name: str, entry: Any) -> tuple[str, Shape, int, int]:
    shown = ascii(name)[:100]
    _require(
        isinstance(entry, dict) and entry.keys() == {"dtype", "shape", "data_offsets"},
        f"{shown} is not described by dtype, shape and data_offsets",
    )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    _require(isinstance(dtype, str) and dtype in _DTYPES, f"{shown} has an unknown dtype")
    _require(
        isinstance(shape, list) and len(shape) <= MOST_DIMENSIONS
        and all(type(size) is int and 0 <= size < 2**48 for size in shape),
        f"the shape of {shown} is not a short list of sizes",
    )  # fmt: skip
    _require(
        isinstance(offsets, list) and len(offsets) == 2 and all(type(at) is int and 0 <= at < 2**48 for at in offsets),
        f"the offsets of {shown} are not two positions",
    )
    begin, end = offsets
    size = math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize
    _require(end - begin == size, f"{shown} has {end - begin} bytes, and its shape needs {size}")
    return dtype, tuple(shape), begin, end


def _require_gapless(places: list[tuple[int, int]], size: int) -> None:
    """Tensors lie one after the other: no overlap, no hole, nothing behind the last."""
    at = 0
    for begin, end in sorted(places):
        _require(begin == at, "tensors that overlap, or leave a hole")
        at = end
    _require(at == size, "the data is longer or shorter than its tensors")


def _tensor(name: str, dtype: str, raw: bytes) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = np.frombuffer(raw, dtype="u1" if dtype == "BOOL" else _DTYPES[dtype])
    if dtype == "BOOL":
        _require(bool((values <= 1).all()), f"{ascii(name)[:100]} holds truth values other than 0 and 1")
        return values.astype(bool)
    if dtype == "BF16":  # the upper half of a float32
        values = (values.astype("<u4") << np.uint32(16)).view("<f4")
    if values.dtype.kind == "f":
        _require(bool(np.isfinite(values).all()), f"{ascii(name)[:100]} has values that are not finite")
    return values

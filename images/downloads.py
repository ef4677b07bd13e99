"""Downloads that go on where they stopped, and count only when their hash is the expected one."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import requests
from tenacity import Retrying, before_sleep_log, retry_if_exception_type, stop_after_attempt, wait_exponential
from urllib3.exceptions import HTTPError

from arsandbox.images.layers import CHUNK, locked
from arsandbox.sandbox.errors import MachineError, RefusedError, StateError
from arsandbox.sandbox.quantities import format_size

TRIES = 5
# No package is larger: a server that sends on and on shall not fill the disk before the hash can say no.
LARGEST = 8 * 1024**3
TIMEOUT_S = (10.0, 60.0)  # to connect; between two pieces
_LONGEST_NUMBER = 19  # digits: more is no length of a file
# Told while bytes arrive: the file's name, bytes so far, bytes in all (0: not known).
Transfer = Callable[[str, int, int], None]

_log = logging.getLogger(__name__)


class _StoppedError(Exception):
    """The connection ended early, or the server asked for patience: worth another try."""


def fetch(
    url: str,
    sha256: str,
    target: Path,
    *,
    transfer: Transfer,
    wait_s: float = 1.0,
    timeout_s: tuple[float, float] = TIMEOUT_S,
) -> Path:
    """Download `url` to `target` unless it is there; whatever arrived before is kept and continued.

    The bytes lie in `target` with the suffix `.partial` until their SHA-256 is `sha256` (64 hex digits). A broken
    connection is tried again at most TRIES times, with growing waits from `wait_s` seconds. `file:` addresses are
    copied. Raises MachineError when the source cannot be had, RefusedError when it has other bytes or more than
    LARGEST (which are then removed), StateError when the target cannot be written.
    """
    partial = target.with_name(f"{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target.with_name(f"{target.name}.lock")):
            if target.is_file() and _hash(target) == sha256:
                return target
            _receive(url, partial, lambda done, total: transfer(target.name, done, total), wait_s, timeout_s)
            if (found := _hash(partial)) != sha256:
                partial.unlink()
                raise RefusedError(
                    f"{target.name} has the hash {found[:12]}…, but the lock file allows {sha256[:12]}…",
                    hint="the index or a proxy changed the file: nothing of it was used",
                )
            partial.replace(target)
    except OSError as error:
        raise StateError(f"cannot keep {target}: {error.strerror or error}", hint="free some space there") from error
    return target


def _receive(
    url: str, partial: Path, arrived: Callable[[int, int], None], wait_s: float, timeout_s: tuple[float, float]
) -> None:
    parts = urlsplit(url)
    if parts.scheme == "file":
        source = Path(unquote(parts.path))
        try:
            if not source.is_file():  # a device or a pipe would never end
                raise MachineError(f"{source} is no file")
            pieces, total = _pieces(source), source.stat().st_size
        except OSError as error:
            raise MachineError(f"{source} cannot be read: {error.strerror}") from error
        _append(partial, pieces, 0, total, arrived)
        return
    retrying = Retrying(
        retry=retry_if_exception_type((_StoppedError, requests.ConnectionError, requests.Timeout)),
        stop=stop_after_attempt(TRIES),
        wait=wait_exponential(multiplier=wait_s, max=30),
        before_sleep=before_sleep_log(_log, logging.INFO),
        reraise=True,
    )
    place = parts.hostname or url
    try:
        retrying(_get, url, partial, arrived, timeout_s)
    except (_StoppedError, requests.RequestException, HTTPError, ValueError) as error:  # the last two: of redirects
        raise MachineError(
            f"{partial.name.removesuffix('.partial')} cannot be downloaded from {place}: {error}",
            hint="run it again: what has arrived is kept",
        ) from error


def _get(url: str, partial: Path, arrived: Callable[[int, int], None], timeout_s: tuple[float, float]) -> None:
    have = partial.stat().st_size if partial.exists() else 0
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
    with requests.get(url, headers=headers, stream=True, timeout=timeout_s) as answer:
        if answer.status_code == 416:  # all of it is here already, or the file is another one: the hash decides
            return
        if answer.status_code == 429 or answer.status_code >= 500:
            raise _StoppedError(f"the server says {answer.status_code}")
        if answer.status_code not in (
            200,
            206,
        ):  # no words of the library's: they hold the address, and that a password
            raise MachineError(f"{partial.name.removesuffix('.partial')}: the server says {answer.status_code}")
        # A server without ranges sends all of it; one that sends another range is not trusted with it.
        begin = have if answer.headers.get("Content-Range", "").startswith(f"bytes {have}-") else 0
        if answer.status_code == 206 and begin != have:
            raise _StoppedError("the server sent another range than asked for")
        length = answer.headers.get("Content-Length", "")
        told = length.isascii() and length.isdigit() and len(length) < _LONGEST_NUMBER
        total = begin + int(length) if told else 0
        got = _append(partial, _body(answer), begin, total, arrived)
        if told and got < total:
            raise _StoppedError(f"the connection ended after {got} of {total} bytes")


def _body(answer: requests.Response) -> Iterator[bytes]:
    try:
        # Not iter_content, which loses what arrived of a piece when the connection ends within it.
        while piece := answer.raw.read1(CHUNK, decode_content=False):
            yield piece
    except HTTPError as error:
        raise _StoppedError(str(error)) from error


def _append(partial: Path, pieces: Iterator[bytes], begin: int, total: int, arrived: Callable[[int, int], None]) -> int:
    """Write `pieces` from the byte `begin` on; returns how many bytes there are then."""
    with partial.open("r+b" if begin else "wb") as file:
        file.seek(begin)
        file.truncate()
        done = begin
        arrived(done, total)
        for piece in pieces:
            if done + len(piece) > LARGEST:
                partial.unlink()
                raise RefusedError(
                    f"{partial.name.removesuffix('.partial')}: more than {format_size(LARGEST)} arrived",
                    hint="the index or a proxy does not send the file: nothing of it was used",
                )
            file.write(piece)
            done += len(piece)
            arrived(done, total)
        file.flush()
        os.fsync(file.fileno())
    return done


def _pieces(source: Path) -> Iterator[bytes]:
    with source.open("rb") as file:
        while piece := file.read(CHUNK):
            yield piece


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

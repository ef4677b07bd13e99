"""The frames between scorer, controller and model box: docs/integrity.md, "The protocol", version 1.

A frame is a header of 20 bytes (little endian: magic `ARSB`, version, kind, two zero bytes, sequence
number, length) and a payload of `length` bytes, at most `MOST_BYTES`. Standard library only.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

MAGIC, VERSION = b"ARSB", 1
MOST_BYTES = 64 * 1024**2
MOST_WORDS = 4096  # bytes of a message in words
_HEADER = struct.Struct("<4sBBHIQ")
HEADER_BYTES = _HEADER.size
_SHAPE = struct.Struct("<III")
SHAPE_BYTES = _SHAPE.size

# Who may send what: the scorer PREDICT, FRESH and RESULT; the model box ANSWER and FAILED; the controller READY.
PREDICT, ANSWER, FAILED, FRESH, READY, RESULT = 1, 2, 3, 4, 5, 6


class WireError(Exception):
    """What came is not a frame of this protocol, or nothing came any more."""


@dataclass(frozen=True)
class Header:
    """One frame's header; `length` is the payload's, in bytes."""

    kind: int
    sequence: int
    length: int

    def pack(self) -> bytes:
        """The 20 bytes."""
        return _HEADER.pack(MAGIC, VERSION, self.kind, 0, self.sequence, self.length)


def unpack_header(data: bytes) -> Header:
    """The header in 20 bytes. Raises WireError for any other magic, version, kind or length."""
    magic, version, kind, zero, sequence, length = _HEADER.unpack(data)
    if magic != MAGIC:
        raise WireError("not a frame of this protocol")
    if version != VERSION:
        raise WireError(f"protocol version {version}, not {VERSION}")
    if zero or not PREDICT <= kind <= RESULT:
        raise WireError(f"unknown frame kind {kind}")
    if length > MOST_BYTES:
        raise WireError(f"a frame of {length} bytes, more than {MOST_BYTES}")
    return Header(kind, sequence, length)


def receive_exactly(connection: socket.socket, count: int) -> bytearray:
    """The next `count` bytes. Raises WireError when the other end closes first, OSError as sockets do."""
    data = bytearray(count)
    view, have = memoryview(data), 0
    while have < count:
        got = connection.recv_into(view[have:])
        if not got:
            raise WireError("the connection was closed")
        have += got
    return data


def receive(connection: socket.socket) -> tuple[Header, bytearray]:
    """The next frame, whole. Raises WireError, OSError."""
    header = unpack_header(bytes(receive_exactly(connection, HEADER_BYTES)))
    return header, receive_exactly(connection, header.length)


def send(connection: socket.socket, kind: int, sequence: int, *parts: bytes | memoryview) -> None:
    """Send one frame whose payload is `parts`, one after the other. Raises OSError, WireError if too large."""
    length = sum(len(part) for part in parts)
    if length > MOST_BYTES:
        raise WireError(f"a frame of {length} bytes, more than {MOST_BYTES}")
    connection.sendall(Header(kind, sequence, length).pack())
    for part in parts:
        connection.sendall(part)


def pack_shape(rows: int, length: int, last: int) -> bytes:
    """The three numbers that every PREDICT and ANSWER begins with."""
    return _SHAPE.pack(rows, length, last)


def unpack_shape(payload: bytes | bytearray) -> tuple[int, int, int]:
    """The three numbers at the front of `payload`. Raises WireError when it is too short."""
    if len(payload) < SHAPE_BYTES:
        raise WireError("a payload without its shape")
    first, second, third = _SHAPE.unpack_from(payload)
    return int(first), int(second), int(third)

"""Canonical JSON (RFC 8785) and digests of it."""

from __future__ import annotations

import hashlib
from typing import Any

import rfc8785

from arsandbox.sandbox.errors import UsageError


def canonical(document: Any) -> bytes:
    """The one JSON text of `document` (JSON types only).

    Raises UsageError for what that cannot hold: integers from 2**53 on, NaN, lone surrogates.
    """
    try:
        return rfc8785.dumps(document)
    except ValueError as error:
        reason = str(error).encode("ascii", "backslashreplace").decode()
        raise UsageError(
            f"a value cannot be written as JSON: {reason}",
            hint="integers below 2**53, finite numbers and valid Unicode only",
        ) from error


def digest(document: Any) -> str:
    """Hex SHA-256 of the canonical JSON of `document`. Raises UsageError as `canonical` does."""
    return hashlib.sha256(canonical(document)).hexdigest()

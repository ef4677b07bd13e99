"""Canonical JSON (RFC 8785) and digests of it."""

from __future__ import annotations

import hashlib
from typing import Any

import rfc8785


def canonical(document: Any) -> bytes:
    """The one JSON text of `document` (JSON types only). Raises rfc8785.CanonicalizationError."""
    return rfc8785.dumps(document)


def digest(document: Any) -> str:
    """Hex SHA-256 of the canonical JSON of `document`."""
    return hashlib.sha256(canonical(document)).hexdigest()

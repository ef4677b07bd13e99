"""The Ed25519 key that signs what is exported; it lives in the state directory, never in a repository."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner, SSlibKey

from arsandbox.sandbox import state
from arsandbox.sandbox.errors import MachineError, RefusedError, StateError, UsageError


def key_path() -> Path:
    """Where the private key is kept (PKCS #8 PEM, mode 0600)."""
    return state.make_private(state.home() / "keys") / "signing.pem"


def new_key(*, force: bool = False) -> SSlibKey:
    """Make the signing key and return its public half. Raises UsageError when there is one already."""
    path = key_path()
    if path.exists() and not force:
        raise UsageError(f"there is a signing key at {path}", hint="arsandbox key show, or replace it with --force")
    signer = CryptoSigner.generate_ed25519()
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(signer.private_bytes)
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(path)
    return _public(signer)


def load_signer() -> CryptoSigner:
    """The signing key. Raises MachineError without one, RefusedError when others may read it, StateError."""
    path = key_path()
    try:
        mode = path.stat().st_mode & 0o777
        private = path.read_bytes()
    except FileNotFoundError as error:
        raise MachineError("there is no signing key yet", hint="arsandbox key new") from error
    except OSError as error:
        raise StateError(f"cannot read {path}: {error.strerror}", hint="arsandbox key new --force") from error
    if mode & 0o077:
        raise RefusedError(f"{path} can be read by others (mode {mode:04o})", hint=f"chmod 600 {path}")
    try:
        return CryptoSigner(load_pem_private_key(private, password=None))
    except (ValueError, TypeError) as error:
        raise StateError(f"{path} is not a private key", hint="arsandbox key new --force") from error


def public_key() -> SSlibKey:
    """The public half of the signing key."""
    return _public(load_signer())


def _public(signer: CryptoSigner) -> SSlibKey:
    key = signer.public_key
    assert isinstance(key, SSlibKey)  # noqa: S101 - what CryptoSigner makes
    return key

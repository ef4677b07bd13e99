"""Signing keys: private, never overwritten unasked, and told apart where they are of no use."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from securesystemslib.signer import SSlibKey

from arsandbox.sandbox.errors import MachineError, RefusedError, StateError, UsageError
from arsandbox.sandbox.evidence import keys


def test_a_new_key_is_private_and_shown_by_its_id(arsandbox_home: Path) -> None:
    made = keys.new_key()
    path = keys.key_path()
    assert path == arsandbox_home / "keys" / "signing.pem"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    shown = keys.public_key()
    assert (shown.keyid, shown.keyval) == (made.keyid, made.keyval)
    assert shown.keytype == "ed25519" and len(bytes.fromhex(shown.keyval["public"])) == 32
    assert sorted(p.name for p in path.parent.iterdir()) == ["signing.pem"]


def test_a_wide_umask_does_not_make_the_key_readable() -> None:
    before = os.umask(0)
    try:
        keys.new_key()
    finally:
        os.umask(before)
    assert stat.S_IMODE(keys.key_path().stat().st_mode) == 0o600


def test_a_key_is_not_overwritten_but_by_force() -> None:
    first = keys.new_key()
    content = keys.key_path().read_bytes()
    with pytest.raises(UsageError, match="there is a signing key") as caught:
        keys.new_key()
    assert caught.value.exit_code == 2 and keys.key_path().read_bytes() == content
    second = keys.new_key(force=True)
    assert second.keyid != first.keyid == SSlibKey.from_dict(first.keyid, first.to_dict()).keyid
    assert keys.public_key().keyid == second.keyid


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610, 0o601])
def test_a_key_that_others_may_use_is_refused_with_exit_3(mode: int) -> None:
    keys.new_key()
    keys.key_path().chmod(mode)
    with pytest.raises(RefusedError, match="can be read by others") as caught:
        keys.load_signer()
    assert caught.value.exit_code == 3 and "chmod 600" in caught.value.hint
    keys.key_path().chmod(0o600)
    keys.load_signer()


def test_no_key_and_a_broken_key_are_told_apart() -> None:
    with pytest.raises(MachineError, match="no signing key") as caught:
        keys.load_signer()
    assert (caught.value.exit_code, caught.value.hint) == (4, "arsandbox key new")
    keys.new_key()
    keys.key_path().write_text("-----BEGIN PRIVATE KEY-----\nnothing\n-----END PRIVATE KEY-----\n")
    with pytest.raises(StateError, match="not a private key"):
        keys.load_signer()

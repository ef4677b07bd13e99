"""Check a bundle without trusting the machine that wrote it, and without extracting anything.

Everything is derived again: file digests from the signed manifest, record hashes and their chain from
the stored text, statements from the records, and promoted commits from their raw bytes.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import ValidationError
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import Error as SecureSystemsError
from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import SSlibKey

from arsandbox.sandbox.errors import RefusedError, UsageError
from arsandbox.sandbox.evidence.bundle import FORMAT, MANIFEST, MANIFEST_TYPE, RECORDS, SIGNATURE
from arsandbox.sandbox.evidence.statement import PAYLOAD_TYPE, statements
from arsandbox.sandbox.ledger import chain_problems
from arsandbox.sandbox.models import Record
from arsandbox.sandbox.promotion import trailers

_LARGEST_TEXT = 512 * 1024**2
_MOST_FILES = 1_000_000
_ENVELOPE_FAILURES = (SecureSystemsError, ValueError, KeyError, TypeError, AttributeError)


@dataclass
class Report:
    """What was checked: who signed, which records, and every problem found (empty: all is well)."""

    keyid: str
    whole_ledger: bool
    records: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def check_bundle(path: Path, *, keyid: str | None = None) -> Report:
    """Check the bundle at `path`; with `keyid` only that key may have signed it.

    Raises UsageError when it is no bundle at all, RefusedError when its signature does not hold: then
    nothing in it can be believed.
    """
    contents, digests = _read(path)
    if MANIFEST not in contents or SIGNATURE not in contents or RECORDS not in contents:
        raise UsageError(f"{path} is not a bundle: {MANIFEST}, {SIGNATURE} or {RECORDS} is missing")
    key = _signing_key(contents[MANIFEST], path)
    if keyid is not None and key.keyid != keyid:
        raise RefusedError(f"{path} is signed by {key.keyid}, not by {keyid}")
    if _opened(contents[SIGNATURE], key, MANIFEST_TYPE) != contents[MANIFEST]:
        raise RefusedError(f"{path}: the signature does not fit the manifest")
    manifest = json.loads(contents[MANIFEST])
    report = Report(keyid=key.keyid, whole_ledger=bool(manifest["whole_ledger"]), records=list(manifest["records"]))
    _check_files(manifest["files"], digests, report)
    _check_records(contents, digests, key, report)
    return report


def _read(path: Path) -> tuple[dict[str, bytes], dict[str, str]]:
    """The small files' contents, and every file's digest. Nothing is written anywhere."""
    contents: dict[str, bytes] = {}
    digests: dict[str, str] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for number, entry in enumerate(archive):
                name = PurePosixPath(entry.name)
                if number > _MOST_FILES or not entry.isreg() or name.is_absolute() or ".." in name.parts:
                    raise RefusedError(f"{path}: {entry.name!a} has no place in a bundle")
                if entry.name in digests:
                    raise RefusedError(f"{path}: {entry.name!a} is there twice")
                file = archive.extractfile(entry)
                assert file is not None  # noqa: S101 - a regular file
                digest, parts = hashlib.sha256(), []
                keep = not entry.name.startswith("experiments/")
                if keep and entry.size > _LARGEST_TEXT:
                    raise RefusedError(f"{path}: {entry.name!a} is larger than 512 MiB")
                while block := file.read(1 << 20):
                    digest.update(block)
                    if keep:
                        parts.append(block)
                digests[entry.name] = digest.hexdigest()
                if keep:
                    contents[entry.name] = b"".join(parts)
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file") from error
    except (OSError, tarfile.TarError, EOFError) as error:
        raise UsageError(f"{path} is not a bundle: {error}") from error
    return contents, digests


def _signing_key(manifest: bytes, path: Path) -> SSlibKey:
    try:
        document: dict[str, Any] = json.loads(manifest)
        if document["format"] != FORMAT:
            raise UsageError(f"{path} has format {document['format']}", hint="pip install -U arsandbox")
        key = dict(document["key"])
        found = SSlibKey.from_dict(str(key.pop("keyid")), key)
        right = found.keytype == "ed25519" and found.keyid == _keyid(found)
    except _ENVELOPE_FAILURES as error:
        raise UsageError(f"{path} is not a bundle: its manifest cannot be read") from error
    if not right:  # else a wrong id would fool --key
        raise RefusedError(f"{path}: the key id does not belong to the key")
    return found


def _keyid(key: SSlibKey) -> str:
    """The id that belongs to an Ed25519 key. Raises ValueError for a key that is none."""
    return SSlibKey.from_crypto(Ed25519PublicKey.from_public_bytes(bytes.fromhex(key.keyval["public"]))).keyid


def _opened(envelope: bytes, key: SSlibKey, payload_type: str) -> bytes | None:
    """The payload when the envelope is of that type and signed by `key`, else None."""
    try:
        opened = Envelope.from_dict(json.loads(envelope))
        opened.verify([key], 1)
    except (*_ENVELOPE_FAILURES, UnverifiedSignatureError):
        return None
    return opened.payload if opened.payload_type == payload_type else None


def _check_files(claimed: dict[str, str], digests: dict[str, str], report: Report) -> None:
    found = {name: digest for name, digest in digests.items() if name not in (MANIFEST, SIGNATURE)}
    for name in sorted(claimed.keys() | found.keys()):
        if name not in found:
            report.problems.append(f"{name} is missing")
        elif name not in claimed:
            report.problems.append(f"{name!a} is not in the signed manifest")
        elif claimed[name] != found[name]:
            report.problems.append(f"{name} was changed")


def _check_records(contents: dict[str, bytes], digests: dict[str, str], key: SSlibKey, report: Report) -> None:
    documents = contents[RECORDS].decode("utf-8", "replace").splitlines()
    report.problems += chain_problems(enumerate(documents, 1), contiguous=report.whole_ledger)
    records: dict[str, Record] = {}
    for document in documents:
        try:
            record = Record.model_validate_json(document)
        except ValidationError:
            continue  # the chain check has named it
        records[record.id] = record
    for identity in report.records:
        if identity not in records:
            report.problems.append(f"record {identity} is missing")
            continue
        record = records[identity]
        _check_statements(record, contents, key, report)
        _check_experiment(record, digests, report)
        _check_commit(record, contents, report)


def _check_statements(record: Record, contents: dict[str, bytes], key: SSlibKey, report: Report) -> None:
    for kind, expected in statements(record).items():
        envelope = contents.get(f"statements/{record.id}.{kind}.json", b"{}")
        payload = _opened(envelope, key, PAYLOAD_TYPE)
        if payload is None:
            report.problems.append(f"record {record.id}: the signature of its {kind} statement does not hold")
        elif payload != expected:
            report.problems.append(f"record {record.id}: its {kind} statement says something else")


def _check_experiment(record: Record, digests: dict[str, str], report: Report) -> None:
    place = f"experiments/{record.id}"
    expected = {f"{place}/patch.diff": record.patch.sha256}
    expected |= {f"{place}/{stage.stage.value}.log": stage.log_sha256 for stage in record.stages}
    expected |= {f"{place}/artifacts/{path}": digest for path, digest in record.artifacts.items()}
    for name, digest in expected.items():
        if name in digests and digests[name] != digest:
            report.problems.append(f"record {record.id}: {name} is not what the record names")


def _check_commit(record: Record, contents: dict[str, bytes], report: Report) -> None:
    if record.promotion is None:
        return
    commit = record.promotion.commit
    raw = contents.get(f"commits/{commit}", b"")
    algorithm = "sha1" if len(commit) == 40 else "sha256"
    actual = hashlib.new(algorithm, b"commit %d\0" % len(raw) + raw, usedforsecurity=False).hexdigest()
    if actual != commit:
        report.problems.append(f"record {record.id}: commit {commit[:12]} was changed or is missing")
        return
    text = raw.decode("utf-8", "replace")
    if not text.startswith(f"tree {record.candidate_tree}\n"):
        report.problems.append(f"record {record.id}: commit {commit[:12]} has another tree than the measured one")
    if trailers(text).get("Arsandbox-Experiment") != record.id:
        report.problems.append(f"record {record.id}: commit {commit[:12]} lacks its trailer")

"""Check a bundle without trusting the machine that wrote it, and without extracting anything.

Everything is derived again: file digests from the signed manifest, record hashes and their chain from
the stored text, statements from the records, and promoted commits from their raw bytes.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, ValidationError
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import Error as SecureSystemsError
from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import Signature, SSlibKey

from arsandbox.sandbox.canonical import canonical
from arsandbox.sandbox.errors import RefusedError, UsageError
from arsandbox.sandbox.evidence.bundle import FORMAT, MANIFEST, MANIFEST_TYPE, RECORDS, SIGNATURE
from arsandbox.sandbox.evidence.statement import PAYLOAD_TYPE, statements
from arsandbox.sandbox.ledger import chain_problems, shown
from arsandbox.sandbox.promotion import trailers
from arsandbox.sandbox.record import Record

_LARGEST_TEXT = 512 * 1024**2
_LONGEST_NAME = 16 * 1024
_MOST_FILES = 1_000_000
_BLOCK = tarfile.BLOCKSIZE
_ENVELOPE_FAILURES = (SecureSystemsError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
_TEXTS = ("statements/", "commits/")


class _Manifest(BaseModel):
    """What `bundle.json` must say; more is no harm, since it is signed."""

    model_config = ConfigDict(strict=True)

    format: int
    key: dict[str, Any]
    whole_ledger: bool
    records: list[str]
    files: dict[str, str]


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
    manifest = _manifest(contents[MANIFEST], path)
    key = _signing_key(manifest, path)
    if keyid is not None and key.keyid != keyid:
        raise RefusedError(f"{path} is signed by {key.keyid}, not by {keyid}")
    if _opened(contents[SIGNATURE], key, MANIFEST_TYPE) != contents[MANIFEST]:
        raise RefusedError(f"{path}: the signature does not fit the manifest")
    report = Report(keyid=key.keyid, whole_ledger=manifest.whole_ledger, records=manifest.records)
    _check_files(manifest.files, digests, report)
    _check_records(contents, digests, key, report)
    return report


def _read(path: Path) -> tuple[dict[str, bytes], dict[str, str]]:
    """The texts' contents, and every file's digest. Nothing is written anywhere, and only texts are kept."""
    contents: dict[str, bytes] = {}
    digests: dict[str, str] = {}
    kept = 0
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is not a bundle: it is no file")
    try:
        with path.open("rb") as file:
            for number, (name, size) in enumerate(_entries(file, path)):
                place = PurePosixPath(name)
                if number > _MOST_FILES or place.is_absolute() or ".." in place.parts:
                    raise RefusedError(f"{path}: {name!a} has no place in a bundle")
                if name in digests:
                    raise RefusedError(f"{path}: {name!a} is there twice")
                keep = name in (MANIFEST, SIGNATURE, RECORDS) or name.startswith(_TEXTS)
                kept += size if keep else 0
                if kept > _LARGEST_TEXT:
                    raise RefusedError(f"{path}: with {name!a} its texts are larger than 512 MiB")
                digest, parts = hashlib.sha256(), []
                while size and (block := file.read(min(size, 1 << 20))):
                    size -= len(block)
                    digest.update(block)
                    if keep:
                        parts.append(block)
                if size:
                    raise UsageError(f"{path} is not a bundle: it ends within {name!a}")
                digests[name] = digest.hexdigest()
                if keep:
                    contents[name] = b"".join(parts)
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file") from error
    except (OSError, tarfile.TarError) as error:
        raise UsageError(f"{path} is not a bundle: {error}") from error
    return contents, digests


def _entries(file: BinaryIO, path: Path) -> Iterator[tuple[str, int]]:
    """Name and size of each file of a tar, `file` standing at its content, which must be read before the next.

    Plain files and GNU long names are all that the export writes, and all that is let in: nothing here is
    as large as a header claims, sparse, or nested. Raises RefusedError, UsageError, tarfile.TarError.
    """
    long_name = ""
    while (header := file.read(_BLOCK)) != bytes(_BLOCK):
        entry = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        start, name = file.tell(), long_name or entry.name
        if entry.type == tarfile.GNUTYPE_LONGNAME and not long_name and 0 < entry.size <= _LONGEST_NAME:
            long_name = file.read(entry.size).partition(b"\0")[0].decode("utf-8", "surrogateescape")
        elif entry.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and entry.size >= 0:
            long_name = ""
            yield name, entry.size
        else:
            raise RefusedError(f"{path}: {name!a} has no place in a bundle")
        file.seek(start + -(-entry.size // _BLOCK) * _BLOCK)
    while block := file.read(1 << 20):
        if block.strip(b"\0"):
            raise RefusedError(f"{path}: what follows its last file has no place in a bundle")


def _manifest(text: bytes, path: Path) -> _Manifest:
    try:
        document: dict[str, Any] = json.loads(text)
        if isinstance(document["format"], int) and document["format"] != FORMAT:
            raise UsageError(f"{path} has another format than {FORMAT}", hint="pip install -U arsandbox")
        return _Manifest.model_validate(document)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(f"{path} is not a bundle: its manifest cannot be read") from error


def _signing_key(manifest: _Manifest, path: Path) -> SSlibKey:
    try:
        key = dict(manifest.key)
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
    """The payload when the envelope is of that type and signed by `key`, else None.

    Only the bytes that the export writes will do: one signature, in canonical JSON.
    """
    try:
        opened = Envelope.from_dict(json.loads(envelope))
        opened.verify([key], 1)
        signature = Signature(key.keyid, opened.signatures[key.keyid].signature)
        written = canonical(Envelope(opened.payload, payload_type, {key.keyid: signature}).to_dict())
    except (*_ENVELOPE_FAILURES, UnverifiedSignatureError, UsageError):
        return None
    return opened.payload if written == envelope else None


def _check_files(claimed: dict[str, str], digests: dict[str, str], report: Report) -> None:
    found = {name: digest for name, digest in digests.items() if name not in (MANIFEST, SIGNATURE)}
    for name in sorted(claimed.keys() | found.keys()):
        if name not in found:
            report.problems.append(f"{shown(name)} is missing")
        elif name not in claimed:
            report.problems.append(f"{name!a} is not in the signed manifest")
        elif claimed[name] != found[name]:
            report.problems.append(f"{shown(name)} was changed")


def _check_records(contents: dict[str, bytes], digests: dict[str, str], key: SSlibKey, report: Report) -> None:
    documents = contents[RECORDS].removesuffix(b"\n").split(b"\n")
    report.problems += chain_problems(enumerate(documents, 1), contiguous=report.whole_ledger)
    records: dict[str, Record] = {}
    for number, document in enumerate(documents, 1):
        try:
            record = Record.model_validate_json(document)
        except ValidationError:
            if (line := f"record {number} cannot be read") not in report.problems:
                report.problems.append(line)
            continue
        if record.id in records:
            report.problems.append(f"record {shown(record.id)} is there twice")
        records[record.id] = record
    for identity in report.records:
        if identity not in records:
            report.problems.append(f"record {shown(identity)} is missing")
            continue
        record = records[identity]
        _check_statements(record, contents, key, report)
        _check_experiment(record, digests, report)
        _check_commit(record, contents, report)


def _check_statements(record: Record, contents: dict[str, bytes], key: SSlibKey, report: Report) -> None:
    try:
        made = statements(record)
    except UsageError as error:
        report.problems.append(f"record {shown(record.id)}: {error.message}")
        return
    for kind, expected in made.items():
        envelope = contents.get(f"statements/{record.id}.{kind}.json", b"{}")
        payload = _opened(envelope, key, PAYLOAD_TYPE)
        if payload is None:
            report.problems.append(f"record {shown(record.id)}: the signature of its {kind} statement does not hold")
        elif payload != expected:
            report.problems.append(f"record {shown(record.id)}: its {kind} statement says something else")


def _check_experiment(record: Record, digests: dict[str, str], report: Report) -> None:
    place = f"experiments/{record.id}"
    expected = {f"{place}/patch.diff": record.patch.sha256}
    expected |= {f"{place}/{stage.stage.value}.log": stage.log_sha256 for stage in record.stages}
    expected |= {f"{place}/artifacts/{path}": digest for path, digest in record.artifacts.items()}
    for name, digest in expected.items():
        if name in digests and digests[name] != digest:
            report.problems.append(f"record {shown(record.id)}: {shown(name)} is not what the record names")


def _check_commit(record: Record, contents: dict[str, bytes], report: Report) -> None:
    if record.promotion is None:
        return
    commit, name, short = record.promotion.commit, shown(record.id), shown(record.promotion.commit[:12])
    raw = contents.get(f"commits/{commit}", b"")
    algorithm = "sha1" if len(commit) == 40 else "sha256"
    actual = hashlib.new(algorithm, b"commit %d\0" % len(raw) + raw, usedforsecurity=False).hexdigest()
    if actual != commit:
        report.problems.append(f"record {name}: commit {short} was changed or is missing")
        return
    text = raw.decode("utf-8", "replace")
    if not text.startswith(f"tree {record.candidate_tree}\n"):
        report.problems.append(f"record {name}: commit {short} has another tree than the measured one")
    if trailers(text).get("Arsandbox-Experiment") != record.id:
        report.problems.append(f"record {name}: commit {short} lacks its trailer")

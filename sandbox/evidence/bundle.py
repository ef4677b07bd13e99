"""One portable file with everything that a stranger needs to check a result.

A bundle is a plain tar (regular files only, fixed metadata, GNU long names): `bundle.json` lists every other file
with its SHA-256 and is itself signed in `bundle.dsse.json`; `records.jsonl` holds ledger records as
they are stored; `statements/` the signed statements of each exported record; `experiments/` patches,
logs and, by choice, artifacts; `commits/` the promoted commits as git stores them.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

from securesystemslib.signer import CryptoSigner

from arsandbox.sandbox.canonical import canonical
from arsandbox.sandbox.errors import StateError, UsageError
from arsandbox.sandbox.evidence.statement import PAYLOAD_TYPE, sign, statements
from arsandbox.sandbox.ledger import Ledger
from arsandbox.sandbox.record import Record
from arsandbox.sandbox.repository import Repository
from arsandbox.sandbox.run_directory import measured_in
from arsandbox.sandbox.workspace.upper import sha256_of

FORMAT = 1
MANIFEST, SIGNATURE, RECORDS = "bundle.json", "bundle.dsse.json", "records.jsonl"
MANIFEST_TYPE = "application/vnd.arsandbox.bundle+json"


def export(
    repository: Repository,
    target: Path,
    signer: CryptoSigner,
    *,
    experiment: str | None = None,
    branch: str | None = None,
    artifacts: bool = False,
) -> list[Record]:
    """Write a bundle of one experiment (and its baseline), or of all promotions to `branch`; returns the records.

    With `branch` the whole ledger goes along, so that its chain can be checked from the first record.
    Raises UsageError (nothing to export, target exists), StateError (disk full).
    """
    if target.exists():
        raise UsageError(f"{target} exists already", hint="name another file")
    with Ledger.open(repository.state) as ledger:
        if branch is not None:
            records = ledger.promoted(branch)
            documents = list(ledger.documents())
        else:
            record = ledger.get(experiment or "")
            records = [record]
            if record.baseline is not None and record.baseline.experiment != record.id:
                records.insert(0, ledger.get(record.baseline.experiment))
            documents = [ledger.document(r.id) for r in records]
    if not records:
        raise UsageError(f"nothing was promoted to {branch}", hint="arsandbox history")
    members: dict[str, bytes | Path] = {RECORDS: "".join(f"{d}\n" for d in documents).encode()}
    for record in records:
        members |= dict(_members(repository, record, signer, artifacts=artifacts))
    manifest = {
        "format": FORMAT,
        "key": {"keyid": signer.public_key.keyid, **signer.public_key.to_dict()},
        "whole_ledger": branch is not None,
        "branch": branch,
        "records": [record.id for record in records],
        "files": {name: _digest(content) for name, content in sorted(members.items())},
    }
    payload = canonical(manifest)
    head: dict[str, bytes | Path] = {MANIFEST: payload, SIGNATURE: sign(payload, MANIFEST_TYPE, signer)}
    _write(target, {**head, **dict(sorted(members.items()))})
    return records


def _members(
    repository: Repository, record: Record, signer: CryptoSigner, *, artifacts: bool
) -> Iterator[tuple[str, bytes | Path]]:
    for kind, payload in statements(record).items():
        yield f"statements/{record.id}.{kind}.json", sign(payload, PAYLOAD_TYPE, signer)
    home = repository.state / "experiments" / record.id
    names = ["patch.diff", *(f"{stage.stage.value}.log" for stage in record.stages if record.rerun is None)]
    for name in names:
        if (home / name).is_file():
            yield f"experiments/{record.id}/{name}", home / name
    kept = measured_in(repository.state, record) / "artifacts"
    for path in sorted(record.artifacts) if artifacts else ():
        if (kept / path).is_file():
            yield f"experiments/{record.id}/artifacts/{path}", kept / path
    if record.promotion is not None:
        commit = record.promotion.commit
        yield f"commits/{commit}", repository.objects.git("cat-file", "commit", commit)


def _digest(content: bytes | Path) -> str:
    return hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else sha256_of(content)


def _write(target: Path, members: dict[str, bytes | Path]) -> None:
    fresh = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with tarfile.open(fresh, "w", format=tarfile.GNU_FORMAT, encoding="utf-8") as archive:
            for name, content in members.items():
                entry = tarfile.TarInfo(name)
                entry.mode = 0o644
                if isinstance(content, bytes):
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))
                else:
                    entry.size = content.stat().st_size
                    with content.open("rb") as file:
                        archive.addfile(entry, file)
        fresh.rename(target)
    except OSError as error:
        raise StateError(f"cannot write {target}: {error.strerror}", hint="free some space") from error
    finally:
        fresh.unlink(missing_ok=True)

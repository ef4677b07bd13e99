"""A ledger with real promoted commits, and its bundles taken apart and put together again."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from securesystemslib.signer import CryptoSigner

from arsandbox.sandbox import candidate, promotion
from arsandbox.sandbox.errors import RefusedError, UsageError
from arsandbox.sandbox.evidence.bundle import MANIFEST, MANIFEST_TYPE, SIGNATURE, export
from arsandbox.sandbox.evidence.check import check_bundle
from arsandbox.sandbox.evidence.statement import sign
from arsandbox.sandbox.ledger import Ledger
from arsandbox.sandbox.models import Reason, Stage, Termination, Usage, Verdict
from arsandbox.sandbox.record import Baseline, MetricInfo, Promotion, Record, StageRecord
from arsandbox.sandbox.repository import Repository
from arsandbox_fixtures.records import MakeRecord
from arsandbox_fixtures.repositories import MakeRepository

BRANCH = "arsandbox/t"
IDS = [f"20240102-030405-{n:03d}-{n:06x}" for n in range(1, 5)]
BASE_ID, WINNER, LOSER, SECOND = IDS
# An ASCII byte stays ASCII, so that texts stay readable and only their meaning changes.
FLIP = 0x01


def sha256(content: bytes) -> str:
    """The digest in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


# --- a ledger with a baseline, a loser and two promotions -------------------------------------------------


@dataclasses.dataclass
class World:
    """A repository with real promoted commits, and its ledger."""

    repository: Repository
    signer: CryptoSigner
    records: dict[str, Record]
    place: Path

    def export(self, name: str = "a.tar", **options: Any) -> Path:
        """A bundle beside the repository."""
        target = self.place / name
        export(self.repository, target, self.signer, **options)
        return target

    def files(self, identity: str) -> Path:
        """The directory of one experiment."""
        return self.repository.state / "experiments" / identity


def stage(kind: Stage, log: bytes) -> StageRecord:
    """The record of a stage that printed `log`."""
    ended = Termination(reason=Reason.COMPLETED, exit_code=0, signal=None, detail="it ended")
    return StageRecord(
        stage=kind, termination=ended, usage=Usage(), started_at="2024-01-02T03:04:05.678Z", wall_s=1.0,
        log_sha256=sha256(log), log_truncated=False,
    )  # fmt: skip


def build(place: Path, make_repo: MakeRepository, make_record: MakeRecord) -> World:
    """The ledger of IDS; its repository is made anew."""
    source = make_repo({"train.py": "x = 1\n", "README.md": "a task\n"}, name="task")
    repository = Repository.open(source.path)
    base = repository.head()
    objects = repository.objects
    records: dict[str, Record] = {}
    stored_patch = place / "edit.patch"
    with Ledger.open(repository.state) as ledger:
        for number, identity in enumerate(IDS):
            if identity == BASE_ID:
                made = candidate.from_commit(objects, base, base)
            else:
                text = f"x = {number + 1}\n"
                stored_patch.write_text(
                    f"--- a/train.py\n+++ b/train.py\n@@ -1 +1 @@\n-x = 1\n+{text}", encoding="utf-8"
                )
                made = candidate.from_patch(objects, base, stored_patch)
            home = repository.state / "experiments" / identity
            (home / "artifacts" / "out").mkdir(parents=True)
            train, evaluate, artifact = (f"{word} {number}\n".encode() * 20 for word in ("train", "evaluate", "model"))
            (home / "train.log").write_bytes(train)
            (home / "evaluate.log").write_bytes(evaluate)
            (home / "patch.diff").write_bytes(made.diff)
            (home / "artifacts" / "out" / "model.bin").write_bytes(artifact)
            verdict = {BASE_ID: Verdict.BASELINE, LOSER: Verdict.DISCARD}.get(identity, Verdict.KEEP)
            value = 1.5 - 0.1 * number
            record = make_record(
                identity,
                branch=BRANCH,
                base_commit=base,
                candidate_tree=made.tree,
                patch=made.patch,
                verdict=verdict,
                description=f"edit {number} é",
                metric=MetricInfo(name="val_bpb", goal="min", value=value, source="evaluate"),
                metrics={"val_bpb": value},
                data_sha256="7" * 64,
                baseline=None if identity == BASE_ID else Baseline(experiment=BASE_ID, value=1.5),
                stages=(stage(Stage.TRAIN, train), stage(Stage.EVALUATE, evaluate)),
                artifacts={"out/model.bin": sha256(artifact)},
                environment={"arsandbox": "0.1.0", "cpu": "a processor"},
                determinism={"ARSANDBOX_SEED": "7"},
            )
            if verdict is Verdict.KEEP:
                tip = repository.branch_tip(BRANCH)
                takes = inspect.signature(promotion.prepare).parameters
                where: dict[str, Any] = {"base": base} if "base" in takes else {"parent": tip or base, "old": tip}
                ready = promotion.prepare(
                    repository, record, candidate=made.commit, branch=BRANCH, ledger_head=ledger.head(), **where
                )
                record = record.model_copy(update={"promotion": Promotion(commit=ready.commit, ref=ready.ref)})
                assert promotion.publish(repository, ready)
            records[identity] = ledger.append(record)
    return World(repository, CryptoSigner.generate_ed25519(), records, place)


@pytest.fixture
def world(tmp_path: Path, make_repo: MakeRepository, make_record: MakeRecord) -> World:
    """A ledger with a baseline, a loser and two promotions."""
    return build(tmp_path, make_repo, make_record)


# --- bundles taken apart and put together again -----------------------------------------------------------


def members(bundle: Path) -> dict[str, bytes]:
    """The bundle taken apart."""
    with tarfile.open(bundle) as archive:
        found = {}
        for entry in archive:
            file = archive.extractfile(entry)
            assert file is not None
            found[entry.name] = file.read()
    return found


def pack(target: Path, content: dict[str, bytes] | list[tuple[str, bytes]], *extra: tarfile.TarInfo) -> Path:
    """A bundle of these members."""
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in content.items() if isinstance(content, dict) else content:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
        for entry in extra:
            archive.addfile(entry)
    return target


def outcome(bundle: Path, keyid: str | None = None) -> list[str]:
    """The problems found, or the refusal; anything that is no answer of ours fails the test."""
    try:
        return check_bundle(bundle, keyid=keyid).problems
    except (RefusedError, UsageError) as error:
        return [error.message]


def resigned(content: dict[str, bytes], signer: CryptoSigner, **changes: Any) -> dict[str, bytes]:
    """The bundle with a manifest that fits its files, signed anew by `signer`; statements are left as they are."""
    manifest = json.loads(content[MANIFEST])
    manifest["key"] = {"keyid": signer.public_key.keyid, **signer.public_key.to_dict()}
    manifest["files"] = {n: sha256(d) for n, d in sorted(content.items()) if n not in (MANIFEST, SIGNATURE)}
    manifest.update(changes)
    payload = rfc8785.dumps(manifest)
    return {**content, MANIFEST: payload, SIGNATURE: sign(payload, MANIFEST_TYPE, signer)}

"""What is signed about a record: in-toto Statements v1, a pure function of the record.

Formats: in-toto attestation Statement v1; SLSA provenance v1 as predicate; DSSE v1 envelopes with
payload type application/vnd.in-toto+json; payloads in canonical JSON (RFC 8785).
"""

from __future__ import annotations

from typing import Any

from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner

from arsandbox.sandbox.canonical import canonical
from arsandbox.sandbox.record import Record

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PROVENANCE = "https://slsa.dev/provenance/v1"
SCORE = "urn:arsandbox:predicate:score:v1"
PROMOTION = "urn:arsandbox:predicate:promotion:v1"


def statements(record: Record) -> dict[str, bytes]:
    """Kind (`provenance`, `score`, `promotion`) to canonical statement; a promotion only where there is one."""
    found = {
        "provenance": _statement(record, PROVENANCE, _provenance(record)),
        "score": _statement(record, SCORE, _score(record)),
    }
    if record.promotion is not None:
        found["promotion"] = _statement(record, PROMOTION, _promotion(record))
    return found


def sign(payload: bytes, payload_type: str, signer: CryptoSigner) -> bytes:
    """A DSSE envelope over `payload`, as JSON bytes."""
    envelope = Envelope(payload, payload_type, {})
    envelope.sign(signer)
    return canonical(envelope.to_dict())


def _statement(record: Record, predicate_type: str, predicate: dict[str, Any]) -> bytes:
    subject: list[dict[str, Any]] = [
        {"name": "candidate", "digest": {"gitTree": record.candidate_tree}},
        {"name": "patch.diff", "digest": {"sha256": record.patch.sha256}},
        *({"name": path, "digest": {"sha256": digest}} for path, digest in sorted(record.artifacts.items())),
    ]
    return canonical(
        {"_type": STATEMENT_TYPE, "subject": subject, "predicateType": predicate_type, "predicate": predicate}
    )


def _provenance(record: Record) -> dict[str, Any]:
    algorithm, _, digest = record.image.digest.partition(":")
    inputs: list[dict[str, Any]] = [
        {"name": "base", "digest": {"gitCommit": record.base_commit}},
        {"name": record.image.name, "digest": {algorithm: digest}},
    ]
    inputs += [{"name": f"cache {one.name}", "digest": {"sha256": one.sha256}} for one in record.caches]
    if record.data_sha256 is not None:
        inputs.append({"name": "prepared data", "digest": {"sha256": record.data_sha256}})
    return {
        "buildDefinition": {
            "buildType": "urn:arsandbox:experiment:v1",
            "externalParameters": {
                "command": list(record.command),
                "budget_s": record.budget_s,
                "grace_s": record.grace_s,
                "seed": record.seed,
            },
            "internalParameters": {"policy": record.policy.effective, "determinism": record.determinism},
            "resolvedDependencies": inputs,
        },
        "runDetails": {
            "builder": {
                "id": "urn:arsandbox:controller",
                "version": {
                    "arsandbox": record.environment.get("arsandbox", ""),
                    "engine": f"{record.engine.name} {record.engine.version}" if record.engine else "",
                },
            },
            "metadata": {
                "invocationId": record.id,
                "startedOn": record.started_at,
                "finishedOn": record.finished_at,
            },
            "byproducts": [
                {"name": f"{stage.stage.value}.log", "digest": {"sha256": stage.log_sha256}} for stage in record.stages
            ],
        },
    }


def _score(record: Record) -> dict[str, Any]:
    names = {"metric", "metrics", "trust", "verdict", "reason", "baseline", "decision", "findings", "setup_sha256"}
    names |= {"environment", "conditions", "usage", "rerun", "ledger_hash", "previous_hash", "id"}
    return record.model_dump(mode="json", include=names)


def _promotion(record: Record) -> dict[str, Any]:
    return record.model_dump(mode="json", include={"promotion", "branch", "id", "ledger_hash"})

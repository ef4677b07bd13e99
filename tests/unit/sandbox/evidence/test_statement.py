"""Signed statements, checked by other implementations too."""

from __future__ import annotations

import base64
import copy
import json
import os
import subprocess
import sys

import pytest
import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from securesystemslib.dsse import Envelope

from arsandbox.sandbox.evidence.statement import PAYLOAD_TYPE, sign, statements
from arsandbox.sandbox.record import Record
from arsandbox_fixtures.evidence import (
    LOSER,
    WINNER,
    World,
)


def pae(payload_type: bytes, payload: bytes) -> bytes:
    """DSSE v1: "DSSEv1" SP LEN(type) SP type SP LEN(body) SP body."""
    return b" ".join(
        [b"DSSEv1", str(len(payload_type)).encode(), payload_type, str(len(payload)).encode(), payload]
    )  # fmt: skip


# --- statements -------------------------------------------------------------------------------------------


def test_statements_are_canonical_and_a_function_of_the_record(world: World) -> None:
    record = world.records[WINNER]
    made = statements(record)
    assert set(made) == {"provenance", "score", "promotion"}
    assert set(statements(world.records[LOSER])) == {"provenance", "score"}
    for payload in made.values():
        assert payload == rfc8785.dumps(json.loads(payload))
    again = Record.model_validate_json(record.model_dump_json())
    assert statements(again) == made
    program = (
        "import sys\nfrom arsandbox.sandbox.evidence.statement import statements\n"
        "from arsandbox.sandbox.record import Record\n"
        "made = statements(Record.model_validate_json(sys.stdin.buffer.read()))\n"
        "sys.stdout.buffer.write(b'\\n'.join(made[k] for k in sorted(made)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], input=record.model_dump_json().encode(), capture_output=True, check=True,
        env={**os.environ, "PYTHONHASHSEED": "1"},
    )  # fmt: skip
    assert done.stdout == b"\n".join(made[kind] for kind in sorted(made))


def test_a_statement_has_in_toto_s_layout_and_provenance_slsa_s(world: World) -> None:
    record = world.records[WINNER]
    types = {
        "provenance": "https://slsa.dev/provenance/v1",
        "score": "urn:arsandbox:predicate:score:v1",
        "promotion": "urn:arsandbox:predicate:promotion:v1",
    }
    made = {kind: json.loads(payload) for kind, payload in statements(record).items()}
    for kind, statement in made.items():
        assert set(statement) == {"_type", "subject", "predicateType", "predicate"}
        assert statement["_type"] == "https://in-toto.io/Statement/v1"
        assert statement["predicateType"] == types[kind]
        digests = {entry["name"]: entry["digest"] for entry in statement["subject"]}
        assert digests == {
            "candidate": {"gitTree": record.candidate_tree},
            "patch.diff": {"sha256": record.patch.sha256},
            "out/model.bin": {"sha256": record.artifacts["out/model.bin"]},
        }
    provenance = made["provenance"]["predicate"]
    assert set(provenance) == {"buildDefinition", "runDetails"}
    definition, details = provenance["buildDefinition"], provenance["runDetails"]
    assert definition["buildType"] == "urn:arsandbox:experiment:v1"
    assert definition["externalParameters"] == {
        "command": ["python", "train.py"], "budget_s": 300, "grace_s": 30, "seed": 7,
    }  # fmt: skip
    dependencies = [entry["digest"] for entry in definition["resolvedDependencies"]]
    assert dependencies == [{"gitCommit": record.base_commit}, {"sha256": "d" * 64}, {"sha256": "7" * 64}]
    assert details["builder"]["id"] == "urn:arsandbox:controller"
    assert details["builder"]["version"] == {"arsandbox": "0.1.0", "engine": "docker 1"}
    metadata = details["metadata"]
    assert metadata["invocationId"] == record.id
    for moment in (metadata["startedOn"], metadata["finishedOn"]):
        assert moment.endswith("Z") and "T" in moment
    logs = {entry["name"]: entry["digest"]["sha256"] for entry in details["byproducts"]}
    assert logs == {f"{s.stage.value}.log": s.log_sha256 for s in record.stages}
    score = made["score"]["predicate"]
    assert (score["metric"]["value"], score["trust"], score["verdict"]) == (1.4, "L2", "keep")
    assert score["ledger_hash"] == record.ledger_hash
    assert record.promotion is not None
    assert made["promotion"]["predicate"]["promotion"]["commit"] == record.promotion.commit


@pytest.mark.parametrize("kind", ["provenance", "score", "promotion"])
def test_an_envelope_is_verified_by_two_other_implementations(kind: str, world: World) -> None:
    payload = statements(world.records[WINNER])[kind]
    raw = sign(payload, PAYLOAD_TYPE, world.signer)
    assert raw == rfc8785.dumps(json.loads(raw))
    document = json.loads(raw)
    assert document["payloadType"] == "application/vnd.in-toto+json"
    # securesystemslib's own word
    accepted = Envelope.from_dict(copy.deepcopy(document)).verify([world.signer.public_key], 1)
    assert list(accepted) == [world.signer.public_key.keyid]
    # and by hand, from the DSSE specification
    assert base64.b64decode(document["payload"], validate=True) == payload
    (signature,) = document["signatures"]
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(world.signer.public_key.keyval["public"]))
    one = base64.b64decode(signature["sig"], validate=True)
    public.verify(one, pae(document["payloadType"].encode(), payload))
    for wrong in (
        pae(b"application/json", payload), pae(PAYLOAD_TYPE.encode(), payload + b" "), payload,
    ):  # fmt: skip
        with pytest.raises(InvalidSignature):
            public.verify(one, wrong)

"""`arsandbox key`, `export` and `verify`: records as evidence that others can check."""

from __future__ import annotations

import json as encoder
import sys
from pathlib import Path
from typing import Annotated

import typer

from arsandbox.cli.boundary import application, last_words
from arsandbox.cli.options import Json, Repo

key = application(help="The key that signs exported records.")


@key.command("new")
def new(
    force: Annotated[bool, typer.Option("--force", help="Replace the key that is there.")] = False, json: Json = False
) -> None:
    """Make a signing key (Ed25519, mode 0600, in the state directory)."""
    from arsandbox.sandbox.evidence.keys import key_path, new_key

    made = new_key(force=force)
    _say_key(made.keyid, made.keyval["public"], json=json)
    sys.stderr.write(f"the private key is {key_path()}; keep a copy, and give others the key id\n")


@key.command("show")
def show(json: Json = False) -> None:
    """Print the key's id and its public half."""
    from arsandbox.sandbox.evidence.keys import public_key

    found = public_key()
    _say_key(found.keyid, found.keyval["public"], json=json)


def _say_key(keyid: str, public: str, *, json: bool) -> None:
    if json:
        sys.stdout.write(encoder.dumps({"keyid": keyid, "ed25519": public}) + "\n")
    else:
        sys.stdout.write(f"key id   {keyid}\ned25519  {public}\n")


def export(
    experiment: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="An experiment's id, its beginning or its end.")
    ] = None,
    repo: Repo = Path(),
    branch: Annotated[str | None, typer.Option(help="Instead: every promotion to this branch.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The file to write.")] = None,
    artifacts: Annotated[bool, typer.Option("--artifacts", help="Put kept artifacts in, too.")] = False,
    json: Json = False,
) -> None:
    """Write one signed, portable bundle: records, statements, patches, logs, promoted commits."""
    from arsandbox.sandbox.errors import UsageError
    from arsandbox.sandbox.evidence.bundle import export as write
    from arsandbox.sandbox.evidence.keys import load_signer
    from arsandbox.sandbox.repository import Repository

    if (experiment is None) == (branch is None):
        raise UsageError("give an experiment's ID or --branch", hint="arsandbox history")
    repository = Repository.open(repo)
    target = output or Path(f"{(experiment or branch or '').replace('/', '-')}.arsandbox.tar")
    records = write(repository, target, load_signer(), experiment=experiment, branch=branch, artifacts=artifacts)
    if json:
        sys.stdout.write(encoder.dumps({"bundle": str(target), "records": [r.id for r in records]}) + "\n")
    else:
        sys.stdout.write(f"wrote {target}: {len(records)} records\n")


def verify(
    bundle: Annotated[Path | None, typer.Argument(metavar="[BUNDLE]", help="A bundle of `arsandbox export`.")] = None,
    repo: Repo = Path(),
    keyid: Annotated[str | None, typer.Option("--key", help="The key id that must have signed the bundle.")] = None,
    json: Json = False,
) -> int:
    """Check a bundle, or (without one) this repository's ledger and its promoted commits."""
    if bundle is None:
        from arsandbox.sandbox.audit import problems
        from arsandbox.sandbox.repository import Repository

        found = problems(Repository.open(repo))
        document: dict[str, object] = {"problems": found}
        good = "the ledger is whole, and promoted commits are what it says"
    else:
        from arsandbox.sandbox.evidence.check import check_bundle

        report = check_bundle(bundle, keyid=keyid)
        found = report.problems
        document = {"keyid": report.keyid, "records": report.records, "problems": found}
        whole = "the whole ledger" if report.whole_ledger else f"{len(report.records)} records"
        trust = "" if keyid else "; compare the key id with the publisher's (--key ID)"
        good = f"{whole} checked, signed by {report.keyid}{trust}"
    if json:
        with last_words():
            sys.stdout.write(encoder.dumps(document) + "\n")
    for line in found:
        sys.stderr.write(f"{line}\n")
    if not found:
        sys.stderr.write(f"{good}\n")
    return 3 if found else 0

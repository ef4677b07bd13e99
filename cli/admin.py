"""`arsandbox verify`, `doctor`, `gc`: is the ledger whole, is the machine able, is anything left."""

from __future__ import annotations

import json as encoder
import sys
from pathlib import Path

from arsandbox.cli.options import EngineName, Json, Repo, open_engine


def verify(repo: Repo = Path(), json: Json = False) -> int:
    """Check the ledger's hash chain, and that promoted commits are what their records say."""
    from arsandbox.sandbox.audit import problems
    from arsandbox.sandbox.repository import Repository

    found = problems(Repository.open(repo))
    if json:
        sys.stdout.write(encoder.dumps({"problems": found}) + "\n")
    for line in found:
        sys.stderr.write(f"{line}\n")
    if not found:
        sys.stderr.write("the ledger is whole\n")
    return 3 if found else 0


def doctor(engine: EngineName = "docker", json: Json = False) -> int:
    """Say whether this machine can run sandboxes, and what to do where it cannot."""
    from arsandbox.sandbox.doctor import examine

    rows = examine(engine)
    if json:
        sys.stdout.write(encoder.dumps([row.model_dump() for row in rows]) + "\n")
    else:
        from rich.console import Console
        from rich.markup import escape

        console = Console(highlight=False)
        colours = {"ok": "green", "warning": "yellow", "missing": "red"}
        for row in rows:
            console.print(
                f"[{colours[row.status]}]{row.status:8}[/] {row.name:12} {escape(row.detail)}", soft_wrap=True
            )
            if row.fix:
                console.print(f"{'':8} {'':12} fix: {escape(row.fix)}", soft_wrap=True)
    return 4 if any(row.status == "missing" for row in rows) else 0


def gc(engine: EngineName = "docker", json: Json = False) -> None:
    """Find and remove what dead controllers left: containers, volumes, mounts, directories."""
    from arsandbox.sandbox.recovery import collect_garbage

    done = collect_garbage(open_engine(engine))
    if json:
        sys.stdout.write(encoder.dumps({"removed": done}) + "\n")
        return
    for line in done:
        sys.stdout.write(f"removed {line}\n" if not line.startswith("experiment") else f"{line}\n")
    if not done:
        sys.stderr.write("nothing was left\n")

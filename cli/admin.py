"""`arsandbox doctor` and `gc`: is the machine able, and is anything left."""

from __future__ import annotations

import json as encoder
import sys

from arsandbox.cli.options import EngineName, Json, open_engine


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

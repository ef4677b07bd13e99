"""Credentials: passed by name from the controller's environment, and kept out of everything that is stored."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from arsandbox.policies.model import RESERVED, Policy
from arsandbox.policies.rules import Names
from arsandbox.sandbox.errors import RefusedError, UsageError
from arsandbox.sandbox.record import StageRecord

_LEAST = 8
_REDACTED = "[credential {name}]"


class Credentials:
    """The values of named variables. Their text never leaves this object but into the sandbox's environment."""

    def __init__(self, values: dict[str, str]) -> None:
        self._values = values

    @classmethod
    def from_environment(cls, names: Sequence[str], policy: Policy) -> Credentials:
        """Read `names` from this process's environment. Raises UsageError, RefusedError."""
        for name in names:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise UsageError(
                    "a credential is passed by the name of its variable, never by its value",
                    hint="export OPENAI_API_KEY=... and name OPENAI_API_KEY",
                )
            if RESERVED.match(name) or not any(Names().covers(one, name) for one in policy.environment):
                raise RefusedError(
                    f"the propose policy does not let {name} pass", hint="have the policy's `environment` list it"
                )
            if len(os.environ.get(name, "")) < _LEAST:
                raise UsageError(
                    f"the credential {name} is not set, or is shorter than {_LEAST} characters",
                    hint=f"export {name}=...",
                )
        return cls({name: os.environ[name] for name in names})

    def environment(self) -> dict[str, str]:
        """The variables for the sandbox."""
        return dict(self._values)

    def held_by(self, content: bytes) -> str | None:
        """The name of a credential whose value stands in `content`, or None."""
        return next((name for name, value in self._values.items() if os.fsencode(value) in content), None)

    def redact(self, content: bytes) -> bytes:
        """`content` with each value replaced by its name. Encoded forms of a value are not recognised."""
        for name, value in self._values.items():
            content = content.replace(os.fsencode(value), _REDACTED.format(name=name).encode())
        return content

    def out_of(self, record: StageRecord) -> StageRecord:
        """`record` without a value in the host of a request; a host is in lower case."""
        if record.egress is None:
            return record
        requests = []
        for request in record.egress.requests:
            host = request.host
            for name, value in self._values.items():
                host = host.replace(value.lower(), _REDACTED.format(name=name))
            requests.append(request.model_copy(update={"host": host}))
        return record.model_copy(update={"egress": record.egress.model_copy(update={"requests": tuple(requests)})})

    def keep_log(self, log: Path, target: Path) -> None:
        """Copy the bounded `log` to `target`, redacted. Raises OSError."""
        target.write_bytes(self.redact(log.read_bytes()) if log.exists() else b"")

"""The fake engine as the port has it: for dry runs, unit tests and fault injection."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from pydantic import ValidationError

from arsandbox.sandbox.engines.fake.sandbox import FakeSandbox
from arsandbox.sandbox.engines.fake.script import Call, Fault, Faults, Play, Script, ScriptFile, scripted
from arsandbox.sandbox.engines.port import Sandbox, SandboxSpec
from arsandbox.sandbox.errors import UsageError
from arsandbox.sandbox.models import EngineInfo, Guarantee, Guarantees, ImageRef

SCRIPT = "ARSANDBOX_FAKE_SCRIPT"
_NOTHING = Guarantees(**dict.fromkeys(Guarantees.model_fields, Guarantee.NOT_OFFERED))


class FakeEngine:
    """Runs nothing. `play` says what each sandbox does, `faults` which calls fail, `specs` what was asked for.

    It declares isolation `none`, which every policy refuses, unless a test says otherwise.
    """

    def __init__(
        self,
        play: Play = lambda _: Script(),
        faults: Sequence[Fault] = (),
        *,
        isolation: str = "none",
        guarantees: Guarantees = _NOTHING,
        images: Iterable[str] | None = None,
    ) -> None:
        self._play, self._faults = play, Faults(faults)
        self._info = EngineInfo(
            name="fake", version="0", runtime="none", isolation=isolation, privilege="user", guarantees=guarantees
        )
        self._images = None if images is None else set(images)
        self._held: list[FakeSandbox] = []
        self._lock = threading.Lock()
        self.specs: list[SandboxSpec] = []

    @property
    def calls(self) -> Counter[Call]:
        """How often each call was made."""
        return self._faults.calls

    def sandbox(self, spec: SandboxSpec) -> AbstractContextManager[Sandbox]:
        """See the port."""
        number = self._faults.before("sandbox")
        with self._lock:
            self.specs.append(spec)
        self._faults.after("sandbox", number)
        return FakeSandbox(spec, self._play, self._faults, self)

    def offer_gpus(self, image: ImageRef, uuids: Sequence[str], *, labels: Mapping[str, str]) -> str:
        """See the port: every device that is asked for, by no way at all."""
        return "fake"

    def find_image(self, name: str) -> ImageRef:
        """An image of any name."""
        self._faults.after("find_image", self._faults.before("find_image"))
        return ImageRef(name=name, digest="sha256:" + "0" * 64)

    def has_image(self, digest: str) -> bool:
        """See the port: every image, or those that the engine was made with or has loaded."""
        self._faults.after("has_image", self._faults.before("has_image"))
        return self._images is None or digest in self._images

    def load_image(self, archive: Iterable[bytes]) -> str:
        """See the port; the digest is of the archive's bytes."""
        import hashlib

        number = self._faults.before("load_image")
        digest = hashlib.sha256()
        for block in archive:
            digest.update(block)
        name = f"sha256:{digest.hexdigest()}"
        if self._images is not None:
            self._images.add(name)
        self._faults.after("load_image", number)
        return name

    def sweep(self, labels: dict[str, str]) -> list[str]:
        """See the port: of this process's sandboxes alone."""
        number = self._faults.before("sweep")
        removed = []
        for held in self._snapshot():
            if labels.items() <= held.spec.labels.items():
                held.remove()
                removed.append(f"sandbox {held.spec.experiment}")
        self._faults.after("sweep", number)
        return removed

    def labelled(self, label: str) -> set[str]:
        """See the port."""
        self._faults.after("labelled", self._faults.before("labelled"))
        return {held.spec.labels[label] for held in self._snapshot() if label in held.spec.labels}

    def info(self) -> EngineInfo:
        """See the port."""
        self._faults.after("info", self._faults.before("info"))
        return self._info

    def hold(self, sandbox: FakeSandbox) -> None:
        """Remember an open sandbox."""
        with self._lock:
            self._held.append(sandbox)

    def drop(self, sandbox: FakeSandbox) -> None:
        """Forget one; safe to repeat."""
        with self._lock:
            self._held = [one for one in self._held if one is not sandbox]

    def _snapshot(self) -> list[FakeSandbox]:
        with self._lock:
            return list(self._held)


def open_engine() -> FakeEngine:
    """The engine with the scripts of the file that ARSANDBOX_FAKE_SCRIPT names. Raises UsageError for a bad file."""
    path = os.environ.get(SCRIPT)
    if not path:
        return FakeEngine()
    try:
        told = ScriptFile.model_validate_json(Path(path).read_bytes())
    except OSError as error:
        raise UsageError(f"{SCRIPT}: cannot read {path}: {error.strerror}", hint=f"unset {SCRIPT}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UsageError(f"{SCRIPT}: {path}: {where}: {first['msg']}", hint="see docs/engines.md") from error
    return FakeEngine(scripted(told.stages), told.faults, isolation=told.isolation)

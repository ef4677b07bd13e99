"""Where the time goes: chosen functions of arsandbox are wrapped, and each is charged its own time alone."""

from __future__ import annotations

import functools
import importlib
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# label: the functions charged to it, as "module:attribute" below arsandbox.sandbox. A function that another
# one of this table calls is charged to its own label only, so that the labels add up to the whole.
TABLE: dict[str, tuple[str, ...]] = {
    "open repository": ("repository:Repository.open",),
    "config": ("settings:load_project", "settings:resolve"),
    "fixed files": ("prepared:fixed_tree",),
    "freeze": ("candidate:from_patch", "candidate:from_worktree", "candidate:from_commit"),
    "edit gate": ("candidate:refusals",),
    "branch, champion": ("experiment:_branch", "experiment:champion_of"),
    "recover": ("recovery:recover",),
    "image look-up": ("engines.docker.engine:DockerEngine.has_image",),
    "engine, host facts": ("engines.docker.engine:DockerEngine.info", "host:environment"),
    "ledger": (
        "ledger:Ledger.open", "ledger:Ledger.begin", "ledger:Ledger.append", "ledger:Ledger.measured",
        "ledger:Ledger.intent", "ledger:Ledger.open_experiments",
    ),
    "layers": ("workspace.layers:LayerStore.layers",),
    "quota: make": ("engines.host_workspace:HostWorkspace.create", "engines.docker.helper:HelperWorkspace.create"),
    "container: create": ("engines.docker.container:create", "engines.docker.sandbox:DockerSandbox.__enter__"),
    "container: start to exit": ("engines.docker.sandbox:DockerSandbox.run",),
    "scan": (
        "engines.host_workspace:HostWorkspace.changes", "engines.docker.helper:HelperWorkspace.changes",
        "measure:_tampering",
    ),
    "container: remove": (
        "engines.docker.sandbox:_remove_container", "engines.docker.sandbox:_remove_volume",
        "engines.docker.sandbox:DockerSandbox._remove",
    ),
    "quota: remove": ("engines.host_workspace:HostWorkspace.remove", "engines.docker.helper:HelperWorkspace.remove"),
    "run directory: remove": ("recovery:remove_run",),
}  # fmt: skip


class Probes:
    """Seconds by label, exclusive of what other labels took; only the thread that installed it is watched."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner: list[float] = []
        self._thread = threading.get_ident()

    def install(self) -> None:
        """Wrap every function of TABLE; one that is not there (any more) is said and left out."""
        for label, targets in TABLE.items():
            for target in targets:
                module_name, _, path = target.partition(":")
                *parents, name = path.split(".")
                try:
                    module = importlib.import_module(f"arsandbox.sandbox.{module_name}")
                    owner = functools.reduce(getattr, parents, module)
                    found = vars(owner)[name]
                except (ImportError, AttributeError, KeyError):
                    sys.stderr.write(f"no probe for {target}: not there\n")
                    continue
                wrapped = self._wrapped(label, found)
                setattr(owner, name, wrapped)
                if not parents:  # also where it was imported by name
                    for other in [m for n, m in sys.modules.items() if n.startswith("arsandbox.") and m is not module]:
                        for key in [k for k, v in vars(other).items() if v is found]:
                            setattr(other, key, wrapped)

    @contextmanager
    def charged(self, label: str) -> Iterator[None]:
        """Charge the block to `label`."""
        if threading.get_ident() != self._thread:
            yield
            return
        began = time.perf_counter()
        self._inner.append(0.0)
        try:
            yield
        finally:
            elapsed = time.perf_counter() - began
            self.seconds[label] += elapsed - self._inner.pop()
            if self._inner:
                self._inner[-1] += elapsed

    def take(self) -> dict[str, float]:
        """The seconds since the last call."""
        taken = dict(self.seconds)
        self.seconds.clear()
        return taken

    def _wrapped(self, label: str, found: Any) -> Any:
        if isinstance(found, classmethod):
            return classmethod(self._wrapped(label, found.__func__))
        function: Callable[..., Any] = found

        @functools.wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            with self.charged(label):
                return function(*arguments, **options)

        return call

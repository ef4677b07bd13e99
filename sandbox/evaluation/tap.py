"""The data tap: training that declares `startup` gets its data when the host's clock starts, and not before.

Start-up (imports, compilation) is bounded and not part of the budget; without the data no training can
hide in it. The training box says READY on a socket in a directory that is mounted read-only; then the host
puts the prepared data there and counts the budget from that moment.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path

from arsandbox.sandbox.engines.port import ReadOnlyMount
from arsandbox.sandbox.evaluation.box import wire
from arsandbox.sandbox.evaluation.box.wire import Header
from arsandbox.sandbox.evaluation.channel import SOCKET_NAME, ChannelError, Endpoint
from arsandbox.sandbox.evaluation.mounts import TARGET, furnish

_DATA = "data"


class DataTap:
    """One training run's tap. `end` is set when its start-up or, after READY, its time is over.

    `startup_s` are the seconds until READY by the host's clock, None before; `late` says what was over.
    """

    def __init__(self, directory: Path, data: Path, *, limit_s: float, deadline_s: float) -> None:
        self._data, self._limit_s, self._deadline_s = data, limit_s, deadline_s
        self._endpoint = Endpoint(directory, "training")
        furnish(directory)
        (directory / _DATA).mkdir()
        (directory / _DATA).chmod(0o755)
        self.end = threading.Event()
        self._over = threading.Event()
        self.startup_s: float | None = None
        self.late = ""
        self.problem: OSError | None = None
        self._thread = threading.Thread(target=self._wait, name="data-tap")

    @property
    def mount(self) -> ReadOnlyMount:
        """What the training box sees of the tap."""
        return ReadOnlyMount(source=self._endpoint.directory, target=TARGET)

    @property
    def environment(self) -> dict[str, str]:
        """Where the training box finds it."""
        return {"ARSANDBOX_TAP": f"{TARGET}/{SOCKET_NAME}", "ARSANDBOX_DATA": f"{TARGET}/{_DATA}"}

    def start(self) -> None:
        """Start the clock of the start-up."""
        self._thread.start()

    def close(self) -> None:
        """The run is over."""
        self._over.set()
        self._endpoint.hang_up()
        if self._thread.is_alive():
            self._thread.join()
        self._endpoint.close()

    def _wait(self) -> None:
        began = time.monotonic()
        try:
            self._endpoint.accept(began + self._limit_s, lambda: not self._over.is_set())
            asked = self._endpoint.header(began + self._limit_s)
            if asked != Header(wire.READY, 1, 0):
                raise ChannelError("training", "it said something else than READY")
            _link(self._data, self._endpoint.directory / _DATA)
        except ChannelError as error:
            if not self._over.is_set():
                self.late = f"it was not ready within the {self._limit_s:g} s of its start-up: {error.detail}"
                self.end.set()
            return
        except OSError as error:
            self.problem = error
            self.end.set()
            return
        opened = time.monotonic()
        self.startup_s = opened - began
        try:
            self._endpoint.send(Header(wire.READY, 1, 0).pack(), opened + self._limit_s)
        except ChannelError:
            pass  # it did not wait for the answer; its time runs all the same
        if not self._over.wait(max(0.0, opened + self._deadline_s - time.monotonic())):
            self.late = f"it ran longer than the {self._deadline_s:g} s after READY"
            self.end.set()


def _link(source: Path, target: Path) -> None:
    """Make the files below `source` appear below `target`: as links of one file system, else as copies."""
    for place, directories, files in os.walk(source):
        inside = target / Path(place).relative_to(source)
        for name in directories:
            (inside / name).mkdir()
            (inside / name).chmod(0o755)
        for name in files:
            try:
                os.link(Path(place, name), inside / name, follow_symlinks=False)
            except OSError:
                shutil.copyfile(Path(place, name), inside / name)
                (inside / name).chmod(0o644)

"""The port's mechanics, for every engine: typed ends, stream, change set, artifacts, labels, sweep, threads."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from arsandbox.policies.model import MIB
from arsandbox.sandbox import host
from arsandbox.sandbox.engines.fake import Script
from arsandbox.sandbox.engines.port import EnoughError
from arsandbox.sandbox.models import Guarantees, Reason
from arsandbox.sandbox.testing.contract import Box, Contract
from arsandbox.sandbox.testing.subject import Subject, specify


class MechanicsContract(Contract):
    """Each program comes with what it amounts to, so that engines which run nothing can be held to the same."""

    def test_it_says_what_it_is(self, subject: Subject) -> None:
        info = subject.engine.info()
        assert info.name == subject.name
        assert info.version and info.runtime and info.isolation
        assert isinstance(info.guarantees, Guarantees)
        assert subject.engine.info() == info

    def test_it_has_the_image_that_it_runs(self, subject: Subject) -> None:
        assert subject.engine.has_image(subject.image.digest)

    def test_output_of_both_streams_arrives_whole(self, box: Box) -> None:
        lines = b"".join(b"%05d\n" % number for number in range(2000))
        done = box(
            """
            import os
            for number in range(2000): os.write(1 + number % 2, b"%05d\\n" % number)
            """,
            does=Script(output=lines),
        )
        assert done.reason is Reason.COMPLETED and done.outcome.termination.exit_code == 0
        assert sorted(done.text.split()) == lines.decode().split()
        assert done.outcome.usage.output_bytes == len(lines)
        assert done.watching.ticks

    def test_an_exit_code(self, box: Box) -> None:
        done = box("raise SystemExit(3)", does=Script(exit_code=3))
        assert (done.reason, done.outcome.termination.exit_code) == (Reason.CRASH, 3)
        assert done.outcome.termination.signal is None

    def test_exit_code_137_is_a_crash(self, box: Box) -> None:
        done = box("import sys; sys.exit(137)", does=Script(exit_code=137))
        assert (done.reason, done.outcome.termination.exit_code) == (Reason.CRASH, 137)

    def test_a_timeout(self, box: Box) -> None:
        done = box("import time; time.sleep(60)", deadline_s=1, does=Script(seconds=60))
        assert done.reason is Reason.TIMEOUT and done.outcome.termination.exit_code is None
        assert "1.0s" in done.outcome.termination.detail
        assert 1 <= done.outcome.wall_s < 30

    def test_output_over_its_limit(self, box: Box) -> None:
        done = box('import os; os.write(1, b"x" * 60_000)', output_bytes=50_000, does=Script(output=b"x" * 60_000))
        assert done.reason is Reason.OUTPUT
        assert len(done.output) == 50_000

    def test_a_full_workspace(self, box: Box) -> None:
        done = box(
            'open("big", "wb").write(bytes(20 << 20))', disk_bytes=8 * MIB, does=Script(files={"big": bytes(20 * MIB)})
        )
        assert done.reason is Reason.DISK, done.outcome
        assert done.outcome.usage.disk_bytes <= 8 * MIB

    def test_the_change_set(self, box: Box) -> None:
        program = """
            import os
            open("kept.txt", "w").write("new")
            os.makedirs("out/deep"); open("out/deep/model", "wb").write(b"weights")
            os.unlink("gone.txt")
            open("same.txt", "a").close()
        """
        does = Script(files={"kept.txt": b"new", "out/deep/model": b"weights"}, deleted=("gone.txt",))
        files = {"kept.txt": "old", "gone.txt": "old", "same.txt": "same"}
        done = box(program, files=files, collect=["out", "kept.txt"], does=does)
        assert done.reason is Reason.COMPLETED, done.text
        assert done.changed == {
            "kept.txt": "modified", "gone.txt": "deleted",
            "out": "added", "out/deep": "added", "out/deep/model": "added",
        }  # fmt: skip
        assert done.collected.files == {
            "out/deep/model": hashlib.sha256(b"weights").hexdigest(), "kept.txt": hashlib.sha256(b"new").hexdigest(),
        }  # fmt: skip
        assert (done.target / "out/deep/model").read_bytes() == b"weights"
        assert (done.spec.layers[0] / "gone.txt").read_text() == "old"  # the layers are never written

    def test_what_is_collected_is_bounded(self, box: Box) -> None:
        done = box(
            'open("big", "wb").write(bytes(2 << 20))', collect=["big"], most_bytes=MIB,
            does=Script(files={"big": bytes(2 * MIB)}),
        )  # fmt: skip
        assert done.collected.files == {} and done.collected.refused

    def test_a_finished_sandbox_leaves_nothing(self, subject: Subject, box: Box) -> None:
        done = box("print(1)", does=Script(output=b"1\n"))
        assert done.spec.experiment not in subject.engine.labelled(host.EXPERIMENT_LABEL)
        assert subject.engine.sweep({host.EXPERIMENT_LABEL: done.spec.experiment}) == []

    def test_a_sandbox_that_is_left_by_an_exception_leaves_nothing(
        self, subject: Subject, places: Callable[[], Path]
    ) -> None:
        spec = specify(subject, places(), "print(1)")
        with pytest.raises(ZeroDivisionError), subject.engine.sandbox(spec):
            raise ZeroDivisionError
        assert spec.experiment not in subject.engine.labelled(host.EXPERIMENT_LABEL)

    def test_an_open_sandbox_is_found_by_its_labels(self, subject: Subject, places: Callable[[], Path]) -> None:
        spec = specify(subject, places(), "print(1)")
        with subject.engine.sandbox(spec):
            assert spec.experiment in subject.engine.labelled(host.EXPERIMENT_LABEL)
            assert subject.engine.sweep({host.EXPERIMENT_LABEL: "another"}) == []
            assert subject.engine.sweep(spec.labels)
        assert subject.engine.sweep(spec.labels) == []

    def test_an_interruption_goes_on_and_ends_the_sandbox(self, subject: Subject, places: Callable[[], Path]) -> None:
        class Interrupting:
            def output(self, chunk: bytes) -> None:
                """Nothing."""

            def tick(self, elapsed_s: float, memory_bytes: int) -> None:
                raise KeyboardInterrupt

        spec = specify(subject, places(), "import time; time.sleep(60)")
        if subject.tell is not None:
            subject.tell(spec.experiment, Script(seconds=60))
        with pytest.raises(KeyboardInterrupt), subject.engine.sandbox(spec) as sandbox:
            sandbox.run(Interrupting())
        assert spec.experiment not in subject.engine.labelled(host.EXPERIMENT_LABEL)

    def test_a_watcher_that_has_enough_ends_the_sandbox_and_learns_what_it_used(
        self, subject: Subject, places: Callable[[], Path]
    ) -> None:
        class Enough:
            said, silent_until_s = False, 0.0

            def output(self, chunk: bytes) -> None:
                self.said = True

            def tick(self, elapsed_s: float, memory_bytes: int) -> None:
                if not self.said:
                    self.silent_until_s = elapsed_s
                elif elapsed_s > self.silent_until_s + 0.5:
                    raise EnoughError

        program = """
            import os, time
            open("left", "w").close()
            held = os.urandom(30_000_000)
            print("there", flush=True)
            time.sleep(60)
        """
        spec = specify(subject, places(), program)
        if subject.tell is not None:
            subject.tell(
                spec.experiment, Script(output=b"there", seconds=20, memory_bytes=30 * MIB, files={"left": b""})
            )
        with subject.engine.sandbox(spec) as sandbox:
            outcome = sandbox.run(Enough())
            assert [one.path for one in sandbox.changes().paths] == ["left"]
        assert outcome.termination.reason is Reason.INTERRUPTED, outcome
        assert outcome.usage.peak_memory_bytes >= 25 * MIB, outcome

    def test_sandboxes_run_from_several_threads_at_once(self, box: Box) -> None:
        def one(number: int) -> tuple[str, dict[str, str]]:
            done = box(f'open("n{number}", "w").close(); print({number})', does=_numbered(number))
            return done.text.strip(), done.changed

        with ThreadPoolExecutor(3) as pool:
            seen = list(pool.map(one, range(3)))
        assert seen == [(str(number), {f"n{number}": "added"}) for number in range(3)]


def _numbered(number: int) -> Script:
    return Script(output=f"{number}\n".encode(), files={f"n{number}": b""})

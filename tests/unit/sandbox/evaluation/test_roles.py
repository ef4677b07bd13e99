"""The three-role evaluation on the fake engine: what the controller makes of what scorer and model box do."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arsandbox.policies.model import MIB
from arsandbox.sandbox import confirmation, experiment, hand_promotion
from arsandbox.sandbox.engines.fake import FakeEngine, Script
from arsandbox.sandbox.engines.port import SandboxSpec
from arsandbox.sandbox.errors import RefusedError
from arsandbox.sandbox.evaluation import heldout
from arsandbox.sandbox.evaluation.box import wire
from arsandbox.sandbox.evaluation.channel import SOCKET_NAME
from arsandbox.sandbox.evaluation.mounts import TARGET
from arsandbox.sandbox.events import Silent
from arsandbox.sandbox.gpu.leases import LABEL
from arsandbox.sandbox.ledger import Ledger
from arsandbox.sandbox.models import Stage
from arsandbox.sandbox.planning import plan_of
from arsandbox.sandbox.record import Record
from arsandbox.sandbox.repository import Repository
from arsandbox.sandbox.rerun import rerun
from arsandbox.sandbox.settings import Options
from arsandbox_fixtures.nvidia import GIB, UUIDS, Driver, Gpu

CONFIG = """
image = "cpu"
budget = "20s"
command = ["python", "train.py"]
editable = ["train.py"]

[metric]
name = "loss"
goal = "min"
source = "evaluate"

[evaluate]
artifacts = ["out/"]
data = ["heldout/"]
"""
LM = '[evaluate.lm]\ntext = "heldout/text"\nsealed = "heldout/sealed"\n[decision]\nrule = "RULE"\n'
MODEL = CONFIG.replace("artifacts", 'interface = "lm"\nserve = ["python", "serve.py"]\nartifacts') + LM
PREDICTIONS = CONFIG.replace("artifacts", 'interface = "predictions"\nartifacts') + (
    '[evaluate.predictions]\nfile = "out/p.csv"\ntargets = "heldout/text"\n[decision]\nrule = "greedy"\n'
)
FILES = {"train.py": "base\n", "serve.py": "serve\n", "heldout/text": "x\n1\n2\n", "heldout/sealed": "y"}


def channel(spec: SandboxSpec) -> socket.socket:
    """A connection to the controller, from within a fake sandbox."""
    place = next(mount.source for mount in spec.mounts if mount.target == TARGET)
    connection = socket.socket(socket.AF_UNIX)
    directory = os.open(place, os.O_RDONLY)  # a socket's path may have 107 bytes
    try:
        connection.connect(f"/proc/self/fd/{directory}/{SOCKET_NAME}")
    finally:
        os.close(directory)
    return connection


def task(spec: SandboxSpec) -> dict[str, Any]:
    place = next(mount.source for mount in spec.mounts if mount.target == TARGET)
    found: dict[str, Any] = json.loads((place / "task.json").read_text())
    return found


class Roles:
    """A play: training leaves its own code, and the scorer has a loss for it, audited where that was asked for."""

    def __init__(self, *, noise: float = 0.01, sealed_gain: float = 1.0) -> None:
        self.audits: list[bool] = []
        self.runs = 0
        self.code = ""
        self._noise, self._sealed_gain = noise, sealed_gain
        self._loaded = threading.Event()

    def __call__(self, spec: SandboxSpec) -> Script:
        if spec.stage is Stage.TRAIN:
            self.code = next(layer / "train.py" for layer in spec.layers if (layer / "train.py").exists()).read_text()
            return Script(files={"out/p.csv": self.code.encode()})
        if spec.stage is Stage.MODEL:
            self.code = next(layer / "out/p.csv" for layer in spec.layers if (layer / "out").exists()).read_text()
            self._loaded.set()
            with channel(spec) as connection:
                connection.recv(1)  # the end of the conversation
            return Script()
        return self.score(spec)

    def score(self, spec: SandboxSpec) -> Script:
        asked = task(spec)
        if asked["interface"] == "lm":
            self.audits.append(asked["audit"])
            self._loaded.wait(20)
            self._loaded.clear()
        self.runs += 1
        better = self.code != "base\n"
        metrics = {"loss": (1.0 if better else 2.0) + self.runs % 3 * self._noise}
        if asked.get("sealed"):
            metrics["loss.sealed"] = 2.0 - better * self._sealed_gain
        result = {
            "metrics": metrics, "count": 2, "probes": 0, "audited": asked.get("audit", False), "findings": [],
        }  # fmt: skip
        with channel(spec) as connection:
            wire.send(connection, wire.RESULT, 1, json.dumps(result).encode())
            connection.recv(1)
        return Script()


@pytest.fixture
def policy(tmp_path: Path) -> Callable[[str], str]:
    def write(text: str) -> str:
        path = tmp_path / "policy.toml"
        path.write_text(text)
        return str(path)

    return write


def run(repository: Any, roles: Roles, **options: Any) -> Record:
    engine = FakeEngine(roles, isolation="container")
    request = experiment.Request(repository.path, Options(tag="t", **options))
    found: Record = experiment.run(experiment.plan(request, find_image=engine.find_image), engine, Silent())
    return found


def improved(repository: Any, roles: Roles, **options: Any) -> Record:
    """The record of an edit that is better than the base."""
    (repository.path / "train.py").write_text("better\n")
    return run(repository, roles, **options)


def test_a_patch_that_names_held_out_data_is_told(make_repo: Callable[..., Any]) -> None:
    repository = make_repo({**FILES, "arsandbox.toml": MODEL.replace("RULE", "greedy")})
    assert run(repository, Roles()).findings == ()
    (repository.path / "train.py").write_text("open('heldout/text')\n")
    (repository.path / "serve.py").write_text("serve\n")
    record = run(repository, Roles())
    assert [(f.code, f.detail) for f in record.findings] == [
        ("names_heldout", "the patch names heldout, which training does not have")
    ]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b"+open('heldout/text.txt')", True), (b'+Path("heldout") / "x"', True), (b"+x = val.bin", True),
        (b"-open('heldout/text.txt')", False), (b" heldout/", False), (b"+++ b/heldout/x", False),
        (b"+my_heldout/ heldouts heldout-2 x.heldout val.binary", False), (b"+\xff heldout/", True),
    ],
)  # fmt: skip
def test_what_names_held_out_data(line: bytes, found: bool) -> None:
    assert (
        bool(heldout.named(b"--- a/train.py\n+++ b/train.py\n@@ -1 +1 @@\n" + line + b"\n", ("heldout/", "val.bin")))
        is found
    )


@pytest.mark.parametrize(
    "behind",
    [
        b"",
        # What the command began on its other stream and never ended: an engine hands it on at the end.
        b"arsandbox: processes that outlived the command: 0",
        b"y" * 60_000,
    ],
)
def test_processes_that_outlive_training_are_told(behind: bytes, make_repo: Callable[..., Any]) -> None:
    last = b"\narsandbox: processes that outlived the command: 2\n" + behind

    class Leaving(Roles):
        def __call__(self, spec: SandboxSpec) -> Script:
            script = super().__call__(spec)
            return script.model_copy(update={"output": b"x" * 5000 + last}) if spec.stage is Stage.TRAIN else script

    record = run(make_repo({**FILES, "arsandbox.toml": PREDICTIONS}), Leaving())
    assert [(f.code, f.detail[-3:]) for f in record.findings] == [("outlived", ": 2")]


def test_a_scorer_that_runs_out_of_memory_says_on_which_file(make_repo: Callable[..., Any]) -> None:
    class Hungry(Roles):
        def score(self, spec: SandboxSpec) -> Script:
            return Script(memory_bytes=spec.limits.memory_bytes + MIB, exit_code=137)

    record = run(make_repo({**FILES, "arsandbox.toml": PREDICTIONS}), Hungry())
    assert record.verdict.value == "no_metric"
    assert [(f.code, "out/p.csv of 5 bytes" in f.detail) for f in record.findings] == [("bad_artifact", True)], record


def test_the_scorer_is_told_how_much_memory_it_has(make_repo: Callable[..., Any]) -> None:
    told: list[Any] = []

    class Telling(Roles):
        def score(self, spec: SandboxSpec) -> Script:
            told.append((task(spec)["memory_bytes"], spec.limits.memory_bytes))
            return super().score(spec)

    record = run(make_repo({**FILES, "arsandbox.toml": PREDICTIONS + '[limits]\nmemory = "96m"\n'}), Telling())
    assert (record.verdict.value, record.trust) == ("baseline", "L3"), record
    assert told == [(96 * MIB, 96 * MIB)]


def test_a_policy_that_promotes_from_l4_on_audits_unasked_and_refuses_l3(
    make_repo: Callable[..., Any], policy: Callable[[str], str]
) -> None:
    demanding = policy('promote_trust = "L4"\n')
    roles = Roles()
    record = improved(make_repo({**FILES, "arsandbox.toml": MODEL.replace("RULE", "greedy")}), roles, policy=demanding)
    assert (record.verdict.value, record.trust, record.promotion is not None) == ("keep", "L4", True), record
    assert roles.audits == [True, True]

    other = make_repo({**FILES, "arsandbox.toml": PREDICTIONS}, name="predictions")
    record = improved(other, Roles(), policy=demanding)
    assert (record.verdict.value, record.trust, record.promotion) == ("keep", "L3", None), record
    assert "promotes from trust level L4 on (promote_trust), and this is L3" in record.reason


def test_a_winner_of_l3_is_refused_by_hand_too_where_the_project_demands_l4(make_repo: Callable[..., Any]) -> None:
    demanding = PREDICTIONS + '[policy]\npromote_trust = "L4"\n'
    repository = make_repo({**FILES, "arsandbox.toml": demanding})
    record = improved(repository, Roles())
    assert (record.verdict.value, record.promotion) == ("keep", None)
    with pytest.raises(RefusedError, match="L4") as refused:
        hand_promotion.promote(Repository.open(repository.path), record, accept_self_reported=True)
    assert refused.value.exit_code == 3


@pytest.mark.parametrize(("audited", "trust"), [(True, "L4"), (False, "L3")])
def test_what_won_at_l4_is_confirmed_at_l4(make_repo: Callable[..., Any], audited: bool, trust: str) -> None:
    roles = Roles()
    repository = make_repo({**FILES, "arsandbox.toml": MODEL.replace("RULE", "quick")})
    pending = improved(repository, roles, audit=audited)
    assert (pending.verdict.value, pending.trust) == ("pending", trust), pending
    roles.audits.clear()
    engine = FakeEngine(roles, isolation="container")
    what = plan_of(Repository.open(repository.path), pending, Options())  # `arsandbox confirm ID` asks for no audit
    record = confirmation.confirm(what, pending, engine, Silent())
    assert (record.verdict.value, record.trust, record.promotion is not None) == ("keep", trust, True), record
    assert record.decision is not None
    assert roles.audits.count(True) == (record.decision.pairs if audited else 0)


@pytest.mark.parametrize(("gain", "verdict"), [(0.9, "agrees"), (0.05, "quarantine")])
def test_a_gain_that_is_not_on_the_sealed_text_is_quarantined_and_not_promoted(
    make_repo: Callable[..., Any], gain: float, verdict: str
) -> None:
    roles = Roles(noise=0.0, sealed_gain=gain)
    made = make_repo({**FILES, "arsandbox.toml": MODEL.replace("RULE", "greedy")})
    winner = improved(made, roles, audit=True, promote=False)
    repository, engine = Repository.open(made.path), FakeEngine(roles, isolation="container")
    assert winner.baseline is not None
    with Ledger.open(repository.state) as ledger:
        base = ledger.get(winner.baseline.experiment)
    alone = rerun(repository, winner, engine, Silent(), mode="audit")
    assert (alone.verdict.value, base.id in alone.reason) == ("agrees", True), alone.reason
    assert rerun(repository, base, engine, Silent(), mode="audit").metrics["loss.sealed"] == 2.0
    audit = rerun(repository, winner, engine, Silent(), mode="audit")
    assert audit.verdict.value == verdict, audit
    assert f"by 1 on the held-out text, by {gain:g} on the sealed text" in audit.reason
    assert [finding.code for finding in audit.findings] == ([] if verdict == "agrees" else ["over_fitted"])
    if verdict == "agrees":
        assert hand_promotion.promote(repository, winner, accept_self_reported=False).promotion is not None
        return
    assert audit.verdict.exit_code == 3
    with pytest.raises(RefusedError, match=f"the audit {audit.id}"):
        hand_promotion.promote(repository, winner, accept_self_reported=False)


# --- GPUs for the model box ---


class OnGpus(Roles):
    """The first model box uses 1 GiB of the device, the next one half; the one with the number `greedy` 3 GiB.

    An audited scorer wants two.
    """

    def __init__(self, driver: Driver, greedy: int = 0) -> None:
        super().__init__()
        self._driver, self._greedy, self.boxes = driver, greedy, 0

    def __call__(self, spec: SandboxSpec) -> Script:
        if spec.stage is not Stage.MODEL:
            return super().__call__(spec)
        self.boxes += 1
        used = 3 * GIB if self.boxes == self._greedy else GIB // self.boxes
        self._driver.tell(Gpu(UUIDS[0], used=GIB // 2 + used), Gpu(UUIDS[1]))
        self._driver.seen(UUIDS[0])
        found = super().__call__(spec)
        threading.Timer(0.3, self._driver.tell, [Gpu(UUIDS[0]), Gpu(UUIDS[1])]).start()  # the driver takes its time
        return found

    def score(self, spec: SandboxSpec) -> Script:
        result = {"metrics": {"loss": 1.0}, "count": 2, "probes": 0, "audited": task(spec)["audit"], "findings": []}
        self._loaded.wait(20)
        self._loaded.clear()
        with channel(spec) as connection:
            if result["audited"]:
                wire.send(connection, wire.FRESH, 1)
                assert wire.receive(connection)[0].kind == wire.READY
                self._loaded.wait(20)
            wire.send(connection, wire.RESULT, 2, json.dumps(result).encode())
            connection.recv(1)
        return Script()


ON_GPU = MODEL.replace("RULE", "greedy").replace("[evaluate]\n", "[evaluate]\ngpus = 1\n")


def test_two_model_boxes_have_the_same_grant_one_after_the_other_and_the_scorer_has_none(
    driver: Driver, make_repo: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arsandbox.sandbox.gpu.grant._SETTLED_S", 10.0)
    made = make_repo({**FILES, "arsandbox.toml": ON_GPU})
    engine = FakeEngine(OnGpus(driver), isolation="container")
    request = experiment.Request(made.path, Options(tag="t", audit=True))
    record = experiment.run(experiment.plan(request, find_image=engine.find_image), engine, Silent())
    assert (record.verdict.value, record.trust, record.findings) == ("baseline", "L4", ())
    asked = {spec.stage: (spec.gpus, spec.labels.get(LABEL)) for spec in engine.specs}
    assert asked == {
        Stage.TRAIN: ((), None), Stage.SCORE: ((), None), Stage.MODEL: (UUIDS[:1], UUIDS[0]),
    }  # fmt: skip
    boxes = [stage.usage.gpu for stage in record.stages if stage.stage is Stage.MODEL]
    assert [[(one["uuid"], one["peak_memory_bytes"]) for one in box["devices"]] for box in boxes] == (
        [[(UUIDS[0], GIB)], [(UUIDS[0], GIB // 2)]]  # what the first one used had come back
    )
    assert all(not stage.usage.gpu for stage in record.stages if stage.stage is not Stage.MODEL)

    repository, engine = Repository.open(made.path), FakeEngine(OnGpus(driver), isolation="container")
    audit = rerun(repository, record, engine, Silent(), mode="audit")
    assert (audit.verdict.value, audit.trust) == ("agrees", "L4"), audit.reason
    assert [spec.gpus for spec in engine.specs if spec.stage is Stage.MODEL] == [UUIDS[:1]] * 2


@pytest.mark.parametrize("greedy", [1, 2])
def test_a_model_box_above_its_ceiling_ends_with_vram(
    greedy: int, driver: Driver, make_repo: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arsandbox.sandbox.gpu.grant._SETTLED_S", 10.0)
    ceiling = '[policy.stage.model.limits]\nvram_bytes = "2g"\n'
    made = make_repo({**FILES, "arsandbox.toml": ON_GPU + ceiling})
    record = run(made, OnGpus(driver, greedy), audit=True)
    assert (record.verdict.value, record.metric.value, record.findings) == ("no_metric", None, ())
    assert record.reason == (
        f"the model box ended with vram: used 3.0 GiB of GPU memory on {UUIDS[0]}; the policy's ceiling is 2.0 GiB"
    )
    ends = [stage.termination.reason.value for stage in record.stages if stage.stage is Stage.MODEL]
    assert ends[greedy - 1] == "vram"

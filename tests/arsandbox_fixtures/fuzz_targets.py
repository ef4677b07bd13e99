"""What is fuzzed: each target takes any bytes, and fails by raising anything but the refusals that are declared."""

from __future__ import annotations

import atexit
import math
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

from arsandbox.policies.edits import EditRules
from arsandbox.policies.model import Policy
from arsandbox.sandbox import candidate, config
from arsandbox.sandbox.egress.destinations import Allowlist, DeniedError, Destination, is_public
from arsandbox.sandbox.egress.hello import HelloReader
from arsandbox.sandbox.egress.request import Onward, RequestReader
from arsandbox.sandbox.errors import UsageError
from arsandbox.sandbox.evaluation.box.artifacts import ArtifactError, parse_safetensors
from arsandbox.sandbox.evaluation.box.predictions import parse_values
from arsandbox.sandbox.evaluation.box.session import RefusedError, Session
from arsandbox.sandbox.metrics import MetricReader, read_metrics
from arsandbox.sandbox.objects import ObjectStore
from arsandbox.sandbox.proposers.brief import tail
from arsandbox.sandbox.stage import last_line
from arsandbox.sandbox.state import printable

NAMED = Destination("named.example", 443)
ALLOWLIST = Allowlist(frozenset({NAMED}), frozenset())


def pieces(data: bytes) -> list[bytes]:
    """`data` cut at places that its own bytes decide."""
    step = 1 + (data[0] if data else 0) % 61
    return [data[at : at + step] for at in range(0, len(data), step)]


def request(data: bytes) -> None:
    """A request is one for a well-formed destination, or refused; what goes onward is one request alone."""
    reader, sent = RequestReader(), b""
    try:
        for piece in pieces(data):
            asked = reader.feed(piece)
            if asked is None:
                continue
            where = asked.destination
            assert 0 < where.port < 65536 and where.host == where.host.lower() and len(where.host) <= 253
            try:
                ALLOWLIST.require(where)
            except DeniedError:
                pass
            else:
                assert where == NAMED
            if asked.onward is None:
                reader.early()
                return
            onward = Onward()
            sent += onward.encode(asked.onward)
            head, _, _ = sent.partition(b"\r\n\r\n")
            lines = head.split(b"\r\n")
            assert sum(line.lower().startswith(b"host:") for line in lines) == 1
            assert not any(line.lower().startswith(b"proxy-") for line in lines)
            for part in reader.body(None)[0]:
                sent += onward.encode(part)
            return
    except DeniedError as denied:
        assert denied.detail and denied.detail == printable(denied.detail)


def greeting(data: bytes) -> None:
    """A greeting names somebody, nobody, is unfinished, or is refused; it is the same however it is cut."""
    found = []
    for parts in ([data] if data else [], pieces(data)):
        reader, complete = HelloReader(), False
        try:
            for part in parts:
                complete = complete or reader.feed(part)
        except DeniedError:
            found.append("refused")
        else:
            found.append(f"{reader.name}" if complete else "unfinished")
            assert reader.name is None or isinstance(reader.name, str)
    assert found[0] == found[1] or "refused" in found, found


def metrics(data: bytes) -> None:
    """Numbers are finite or told apart, names are plain, and the cut of the stream changes nothing."""
    whole = read_metrics(data)
    reader = MetricReader()
    for piece in pieces(data):
        reader.feed(piece)
    cut = reader.close()
    assert repr(cut) == repr(whole)
    for name in whole.values:
        assert name == printable(name) and len(name) <= 100
        assert isinstance(whole.values[name], float) or math.isfinite(whole.values[name])


def project(data: bytes) -> None:
    """A config is valid, or refused by one line that can be shown."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return
    try:
        config.parse(text, "arsandbox.toml")
    except UsageError as error:
        assert error.message.startswith("arsandbox.toml") and len(error.message) < 5000


def path(data: bytes) -> None:
    """No name escapes the rules: what leaves the repository or hides is never editable."""
    name = data.decode("utf-8", "surrogateescape")
    rules = EditRules(editable=("train.py", "src/"), protected=("src/fixed.py",))
    editable = rules.is_editable(name)
    if editable:  # as .gitignore has it, what is below a directory of a name belongs to it
        assert name == "train.py" or name.startswith(("train.py/", "src/"))
        assert name != "src/fixed.py"
    is_public(name)


@cache
def _place() -> Path:
    """A directory for the whole process."""
    place = Path(tempfile.mkdtemp(prefix="fuzz-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return place


def log(data: bytes) -> None:
    """What is shown of a log is bounded, in plain lines, whatever stands in it."""
    file = _place() / "log"
    file.write_bytes(data)
    shown = tail(file)
    lines = shown.split("\n")
    assert len(lines) <= 40 and all(len(line) <= 300 for line in lines)
    for line in (*lines, last_line(file)):
        assert line == printable(line) and "\x1b" not in line and "\r" not in line


@cache
def _repository() -> tuple[ObjectStore, str]:
    """A store over a small repository, and its commit."""
    repository = _place() / "repository"
    for name, text in {
        "train.py": "rate = 1\nsteps = 2\n",
        "src/model.py": "x = 1\n",
        "evaluate.py": "y = 1\n",
    }.items():
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_text(text)
    who = ["-c", "user.name=fuzz", "-c", "user.email=fuzz@example.org"]
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "base"]):
        subprocess.run(["git", "-C", str(repository), *command], check=True)
    head = subprocess.run(
        ["git", "-C", str(repository), "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()
    store = ObjectStore.open(
        _place() / "objects", alternate=repository / ".git" / "objects", object_format="sha1", shallow=None
    )
    return store, head


def patch(data: bytes) -> None:
    """A patch makes a candidate or is refused in one line; where nothing is refused only editable paths differ."""
    objects, base = _repository()
    try:
        made = candidate.from_diff(objects, base, data, name="--patch fuzz")
    except UsageError as error:
        assert error.message.startswith("--patch fuzz")
        assert error.message == printable(error.message), error.message
        return
    rules = EditRules(editable=("train.py", "src/"), protected=("evaluate.py",))
    changed = [change.path for change in objects.changes(base, made.commit)]
    if not candidate.refusals(made, objects, rules, Policy()):
        assert all(path == "train.py" or path.startswith(("train.py/", "src/")) for path in changed), changed
    assert candidate.from_diff(objects, base, made.diff, name="itself").tree == made.tree or not changed


def safetensors(data: bytes) -> None:
    """Tensors are finite and no larger than the file, or it is refused in one line."""
    try:
        tensors, _ = parse_safetensors(data)
    except ArtifactError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
        return
    assert all(np.isfinite(tensor).all() for tensor in tensors.values() if tensor.dtype.kind == "f")
    assert sum(tensor.nbytes for tensor in tensors.values()) <= 2 * len(data)  # BF16 comes as float32


def predictions(data: bytes) -> None:
    """The first byte says which form the rest has: bounded, finite values, or a refusal in one line."""
    suffix = (".csv", ".txt", ".npy", ".npz")[data[0] % 4 if data else 0]
    try:
        values = parse_values(data[1:], suffix, most=50, most_bytes=20_000)
    except ArtifactError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
        return
    assert values.size <= 50 and values.nbytes <= 50 * 4 * 256
    assert values.dtype.kind in "biufU" and (values.dtype.kind != "f" or np.isfinite(values).all())


def answer(data: bytes) -> None:
    """Whatever a model box says after a request for two distributions of four tokens is scored or refused."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(data[:100_000])
        theirs.shutdown(socket.SHUT_WR)
        try:
            found = Session(ours, 4).predict(np.zeros((2, 3), np.uint32), 1)
        except RefusedError as error:
            assert error.code in ("malformed_answer", "model_failed", "not_finite", "not_normalised")
            return
        chosen = found.of(np.array([[1], [3]], np.uint32))
        assert chosen.shape == (2, 1) and (chosen <= 1e-6).all()


TARGETS: dict[str, Callable[[bytes], None]] = {
    "request": request, "greeting": greeting, "metrics": metrics, "config": project, "path": path,
    "log": log, "patch": patch, "safetensors": safetensors, "predictions": predictions, "answer": answer,
}  # fmt: skip

"""Egress by allowlist from inside real sandboxes, to a real server on loopback that the machine's owner named."""

from __future__ import annotations

import http.server
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from arsandbox.policies.model import Policy
from arsandbox.sandbox import host, state
from arsandbox.sandbox.egress.destinations import Allowlist
from arsandbox.sandbox.engines.port import Engine
from arsandbox.sandbox.engines.registry import open_engine
from arsandbox.sandbox.events import Silent
from arsandbox.sandbox.models import ImageRef, Reason, Stage
from arsandbox.sandbox.stage import StagePlan, run_stage
from arsandbox_fixtures.boxes import LIMITS
from arsandbox_fixtures.docker_engine import collect_quietly
from arsandbox_fixtures.image import image_digest
from arsandbox_fixtures.task import CONFIG, answering

pytestmark = pytest.mark.engine

# What every sandbox with an allowlist may and may not do; prints one JSON object.
PROGRAM = """
import json, os, socket, sys, urllib.request, urllib.error

port = int(sys.argv[1])
seen = {}

def fetch(url):
    try:
        return urllib.request.urlopen(url, timeout=20).read().decode()
    except urllib.error.HTTPError as error:
        return f"{error.code} {error.read().decode()}"

def direct(family, address):
    try:
        with socket.socket(family, socket.SOCK_STREAM) as one:
            one.settimeout(5); one.connect(address)
        return "connected"
    except OSError as error:
        return type(error).__name__

seen["named"] = fetch(f"http://localhost:{port}/hello")
seen["again"] = fetch(f"http://localhost:{port}/hello")
seen["other_port"] = fetch(f"http://localhost:{port + 1}/")
seen["other_host"] = fetch("http://example.com/")
seen["address"] = fetch("http://169.254.169.254/latest/meta-data/")
seen["server"] = direct(socket.AF_INET, ("127.0.0.1", port))
seen["outside"] = direct(socket.AF_INET, ("192.0.2.1", 80))
seen["metadata"] = direct(socket.AF_INET, ("169.254.169.254", 80))
try:
    seen["dns"] = socket.getaddrinfo("example.com", 80) and "resolved"
except OSError:
    seen["dns"] = "no"
seen["interfaces"] = sorted(name for _, name in socket.if_nameindex())
place = os.path.dirname(os.environ["SSL_CERT_FILE"])
try:
    open(place + "/planted", "w"); seen["writable"] = True
except OSError:
    seen["writable"] = False
print(json.dumps(seen))
sys.exit(7)
"""


class Answering(http.server.BaseHTTPRequestHandler):
    """Says what it was asked."""

    def do_GET(self) -> None:
        body = f"{self.headers['Host']} {self.path}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[int]:
    """The port of an HTTP server on loopback."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield int(server.server_address[1])
        server.shutdown()


def engine_and_image(name: str) -> tuple[Engine, ImageRef]:
    engine = open_engine(name)
    if name == "docker":
        return engine, ImageRef(name="cpu", digest=image_digest())
    image = engine.find_image("cpu")
    assert image is not None
    return engine, image


@pytest.mark.parametrize("name", ["docker", "embedded"])
def test_a_stage_reaches_what_is_named_and_nothing_else(home: Path, tmp_path: Path, server: int, name: str) -> None:
    engine, image = engine_and_image(name)
    scratch = Path(os.environ["ARSANDBOX_HOME"]) / f"egress-{os.urandom(4).hex()}"
    layer = scratch / "layer"
    state.make_private(scratch)
    layer.mkdir()
    layer.chmod(0o777)
    (layer / "program.py").write_text(PROGRAM)
    (layer / "program.py").chmod(0o666)
    target = f"localhost:{server}"
    plan = StagePlan(
        stage=Stage.PREPARE, image=image, command=("python3", "program.py", str(server)), environment={},
        layers=(layer,), limits=LIMITS, limit_s=60, log=tmp_path / "log",
        egress=Allowlist.of(Policy(network="allowlist", hosts=(target,), private_hosts=(target,))),
    )  # fmt: skip
    identity = state.new_experiment_id()
    labels = host.labels(identity, "2030-01-01T00:00:00+00:00")
    try:
        with run_stage(engine, plan, experiment=identity, scratch=scratch, labels=labels, listener=Silent()) as run:
            record = run.record
    finally:
        collect_quietly()
    log = (tmp_path / "log").read_text()
    assert (record.termination.reason, record.termination.exit_code) == (Reason.CRASH, 7), log
    seen = json.loads(log.splitlines()[-1])
    assert seen["named"] == seen["again"] == f"{target} /hello"
    assert seen["other_port"].startswith("403 ") and seen["other_host"].startswith("403 ")
    assert seen["address"].startswith("403 ")
    for way in ("server", "outside", "metadata"):
        assert seen[way] != "connected", way
    assert seen["dns"] == "no" and seen["interfaces"] == ["lo"] and not seen["writable"]
    assert record.egress is not None
    found = {(row.host, row.port): (row.decision.value, row.count) for row in record.egress.requests}
    assert found == {
        ("localhost", server): ("allowed", 2),
        ("localhost", server + 1): ("other_port", 1),
        ("example.com", 80): ("not_named", 1),
        ("169.254.169.254", 80): ("direct_address", 1),
    }
    assert not (scratch / "prepare").exists()


PREPARE = """
import os, sys, urllib.request
os.makedirs("data")
open("data/got.txt", "wb").write(urllib.request.urlopen(os.environ["SOURCE"], timeout=20).read())
"""


def test_the_prepare_stage_downloads_what_owner_and_project_name(project: Any, tmp_path: Path, server: int) -> None:
    target = f"localhost:{server}"
    owner = tmp_path / "policy.toml"
    owner.write_text(f'[stage.prepare]\nhosts = ["{target}", "index.example:443"]\nprivate_hosts = ["{target}"]\n')
    section = (
        '\n[prepare]\ncommand = ["python", "prepare.py"]\noutputs = ["data/"]\nnetwork = "allowlist"\n'
        f'hosts = ["{target}"]\n\n[environment]\nSOURCE = "http://{target}/data"\n'
    )
    config = CONFIG.replace('"evaluate.py"]', '"evaluate.py", "prepare.py"]') + section
    task = project({"arsandbox.toml": config, "prepare.py": PREPARE})
    task.env["ARSANDBOX_POLICY"] = str(owner)
    first = task.run("--json").record
    assert first["verdict"] == "baseline"
    row = {"host": "localhost", "port": server, "decision": "allowed", "count": 1}
    (got,) = first["prepared"]["egress"]["requests"]
    assert got.items() >= row.items() and got["received_bytes"] > 0
    assert all(stage["egress"] is None for stage in first["stages"])
    again = task.run_train(answering(20)).record  # from the cache: the record still says where data came from
    assert again["prepared"] == first["prepared"]

    task.commit({"arsandbox.toml": config.replace(f'SOURCE = "http://{target}', 'SOURCE = "http://example.com')})
    done = task.run("--json")
    assert done.code == 3 and "its proxy refused example.com:80 (not_named)" in done.err, done
    task.commit({"arsandbox.toml": config.replace(f'hosts = ["{target}"]', 'hosts = ["evil.example:443"]')})
    done = task.run("--json")
    assert done.code == 3 and "evil.example:443" in done.err and "ARSANDBOX_POLICY" in done.err, done


def test_training_reaches_what_the_policy_names_when_asked_and_a_rerun_does_too(
    project: Any, tmp_path: Path, server: int
) -> None:
    target = f"localhost:{server}"
    named = f'[{{}}stage.train]\nhosts = ["{target}"]\nprivate_hosts = ["{target}"]\n'
    owner = tmp_path / "policy.toml"
    owner.write_text(named.format(""))
    fetch = f"import urllib.request; urllib.request.urlopen('http://{target}/', timeout=20).read()"
    task = project({"arsandbox.toml": CONFIG + named.format("policy."), "train.py": answering(10, before=fetch)})
    task.env["ARSANDBOX_POLICY"] = str(owner)
    for closed in ([], ["--network", "none"]):
        done = task.run("--json", *closed)
        assert done.code == 1 and done.record["verdict"] == "crash", done
    done = task.run("--json", "--network", "allowlist")
    assert done.code == 0 and done.record["verdict"] == "baseline", done
    (training,) = [stage for stage in done.record["stages"] if stage["stage"] == "train"]
    assert [(row["host"], row["decision"]) for row in training["egress"]["requests"]] == [("localhost", "allowed")]
    again = task.cli("rerun", done.record["id"], "--exact", "--json")
    assert again.code == 0 and again.record["verdict"] == "agrees", again

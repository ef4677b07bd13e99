"""aider as a proposer: how it is started, and the real one, where it is installed, against a server on loopback."""

from __future__ import annotations

import functools
import http.server
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from arsandbox.policies.edits import EditRules
from arsandbox.sandbox.config import ProjectConfig
from arsandbox.sandbox.engines.fake import FakeEngine, Script
from arsandbox.sandbox.engines.port import SandboxSpec
from arsandbox.sandbox.errors import MachineError
from arsandbox.sandbox.events import Silent
from arsandbox.sandbox.models import ImageRef, Verdict
from arsandbox.sandbox.proposers import aider
from arsandbox.sandbox.proposers.brief import make_brief
from arsandbox.sandbox.proposers.port import Proposal, ProposerContext, ProposerSpec, open_proposer
from arsandbox.sandbox.repository import Repository
from arsandbox.sandbox.run_directory import run_directory
from arsandbox.sandbox.settings import Options, resolve
from arsandbox.sandbox.workspace.layers import LayerStore

SECRET = "sk-of-nobody-at-all"
FILES = {
    "train.py": "LEARNING_RATE = 1e-3\nSTEPS = 10\n",
    "program.md": "# Lower the loss\n",
    # What a champion may hold: nothing of it may run where aider runs on the host.
    "flake8.py": "import os, pathlib\npathlib.Path(os.environ['HOME'], 'ran').touch()\n",
}

# Writes down how it was started, and edits as aider would.
STAND_IN = """\
#!/usr/bin/env python3
import json, os, pathlib, sys
pathlib.Path(os.environ["SEEN"]).write_text(json.dumps([sys.argv[1:], os.getcwd(), os.environ["OPENAI_API_KEY"]]))
message = pathlib.Path(sys.argv[sys.argv.index("--message-file") + 1]).read_text()
assert "| # Lower the loss" in message and "Edit only: train.py" in message
print("key", os.environ["OPENAI_API_KEY"])
place = pathlib.Path("train.py")
place.write_text(place.read_text().replace("1e-3", "1e-2"))
"""


@pytest.fixture
def propose(make_repo: Callable[..., Any]) -> Callable[..., Proposal]:
    """One round of the host's aider in a small repository."""
    repository = Repository.open(make_repo(FILES).path)
    context = _context(repository, FakeEngine(), trusted=True)

    def one(text: str, **spec: Any) -> Proposal:
        brief = make_brief(
            1, repository.head(), (), objects=repository.objects, experiments=repository.state / "experiments", seed=5
        )
        found = open_proposer(ProposerSpec(text, credentials=("OPENAI_API_KEY",), **spec), context).propose(brief)
        assert found is not None and found.log is not None
        kept = [path for path in repository.state.rglob("*") if path.is_file() and not path.is_symlink()]
        assert found.log in kept and not any(SECRET.encode() in path.read_bytes() for path in kept)
        return found

    return one


def _context(repository: Repository, engine: FakeEngine, *, trusted: bool) -> ProposerContext:
    return ProposerContext(
        engine=engine, repository=repository, settings=resolve(ProjectConfig(), Options()),
        image=ImageRef(name="cpu", digest="sha256:" + "0" * 64),
        layers=LayerStore(repository.state / "layers", repository.objects), listener=Silent(),
        run_directory=functools.partial(run_directory, repository.state), trusted=trusted,
    )  # fmt: skip


def test_aider_gets_one_message_and_may_neither_lint_nor_commit_nor_report(
    propose: Callable[..., Proposal], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "aider").write_text(STAND_IN)
    (tmp_path / "bin" / "aider").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    found = propose("aider:openai/some-model")
    assert found.verdict is None and b"+LEARNING_RATE = 1e-2" in found.diff, found
    assert found.log is not None and "key [credential OPENAI_API_KEY]" in found.log.read_text()
    arguments, place, key = json.loads((tmp_path / "seen").read_text())
    assert arguments[-1] == "./train.py" and arguments[-5:-3] == ["--model", "openai/some-model"]
    assert {"--yes-always", "--no-git", "--no-auto-lint", "--no-auto-test", "--no-analytics"} < set(arguments)
    assert "--no-check-update" in arguments and "--analytics-disable" not in arguments
    assert key == SECRET and not Path(place).exists()


def test_every_editable_file_is_named_as_a_file(make_repo: Callable[..., Any]) -> None:
    tree = {"src/b.py": "b = 1\n", "src/a.py": "a = 1\n", "-load.py": "c = 1\n", "other.py": "d = 1\n"}
    repository = Repository.open(make_repo(tree).path)
    rules = EditRules(editable=("src/", "-*.py"), protected=("src/b.py",))
    files = aider.editable_files(repository.head(), repository.objects, rules)
    assert aider.command(("aider",), "/brief", files, "")[-2:] == ("./-load.py", "./src/a.py")
    many = Repository.open(make_repo({f"{n:02}.py": "a = 1\n" for n in range(60)}, name="many").path)
    assert len(aider.editable_files(many.head(), many.objects, EditRules(editable=("*.py",), protected=()))) == 50


@pytest.mark.parametrize(("failing", "expected"), [(0, ("aider",)), (1, ("python3", "-I", "-m", "aider"))])
def test_in_a_sandbox_the_module_is_tried_where_there_is_no_script(
    make_repo: Callable[..., Any], failing: int, expected: tuple[str, ...]
) -> None:
    asked: list[tuple[str, ...]] = []

    def answer(spec: SandboxSpec) -> Script:
        asked.append(tuple(spec.command))
        return Script(exit_code=127 if len(asked) <= failing else 0)

    context = _context(Repository.open(make_repo(FILES).path), FakeEngine(answer), trusted=False)
    assert aider.installed(context) == expected
    assert asked[-1] == (*expected, "--version") and len(asked) == failing + 1


def test_where_aider_is_in_no_form_it_is_refused(make_repo: Callable[..., Any]) -> None:
    context = _context(Repository.open(make_repo(FILES).path), FakeEngine(lambda _: Script(exit_code=1)), trusted=False)
    with pytest.raises(MachineError, match="not installed in the image cpu"):
        aider.installed(context)


# --- the real one ---------------------------------------------------------------------------------------------

EDIT = """\
A higher learning rate.

train.py
```python
<<<<<<< SEARCH
LEARNING_RATE = 1e-3
=======
LEARNING_RATE = 1e-2
>>>>>>> REPLACE
```
"""


class Model(http.server.BaseHTTPRequestHandler):
    """Answers every chat with one edit, in OpenAI's form; keeps what it was asked."""

    asked: ClassVar[list[tuple[str, str, dict[str, Any]]]]
    answered: ClassVar[threading.Event]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append((self.path, self.headers["Authorization"], body))
        self.answered.wait(60)
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": EDIT}}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        head = {"id": "1", "object": "chat.completion", "created": 1, "model": body["model"]}
        answer = json.dumps({**head, "choices": [choice], "usage": usage}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Model]]:
    """A model server that the environment names, and a home of its own for aider."""

    class Ours(Model):
        asked: ClassVar[list[tuple[str, str, dict[str, Any]]]] = []
        answered: ClassVar[threading.Event] = threading.Event()

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Ours) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("OPENAI_API_BASE", f"http://127.0.0.1:{server.server_address[1]}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", SECRET)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        (tmp_path / "home").mkdir()
        yield Ours
        Ours.answered.set()
        server.shutdown()


@pytest.mark.group("agents")
@pytest.mark.skipif(shutil.which("aider") is None, reason="aider is not installed: pip install aider-chat")
def test_the_real_aider_turns_a_models_answer_into_a_candidate(
    propose: Callable[..., Proposal], model: type[Model], tmp_path: Path
) -> None:
    model.answered.set()
    found = propose("aider:openai/gpt-4o")
    assert found.log is not None
    assert found.verdict is None, (found, found.log.read_text())
    assert found.diff.count(b"diff --git") == 1 and b"+LEARNING_RATE = 1e-2" in found.diff
    assert not found.findings, "it left files beside its edit"
    [(path, key, body)] = model.asked
    assert (path, key) == ("/v1/chat/completions", f"Bearer {SECRET}")
    assert not (tmp_path / "home" / "ran").exists(), "it ran a file of the champion's"
    assert "| # Lower the loss" in json.dumps(body) and "STEPS = 10" in json.dumps(body)


@pytest.mark.group("agents")
@pytest.mark.skipif(shutil.which("aider") is None, reason="aider is not installed: pip install aider-chat")
def test_the_real_aider_is_ended_while_its_model_says_nothing(
    propose: Callable[..., Proposal], model: type[Model]
) -> None:
    assert propose("aider:openai/gpt-4o", limit_s=15).verdict is Verdict.TIMEOUT
    assert model.asked

"""Wheels: lock files, downloads from a server that misbehaves, and the layer that is made of them."""

from __future__ import annotations

import hashlib
import http.server
import io
import os
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from rich.console import Console

from arsandbox.cli.transfers import Transfers
from arsandbox.images import downloads
from arsandbox.images.downloads import fetch
from arsandbox.images.indexes import Indexes, index_urls, pip_settings
from arsandbox.images.lockfile import LockedWheel, locked_wheels
from arsandbox.images.wheels import borrowed, obtain_wheels, platforms, remove_wheels, write_wheels
from arsandbox.sandbox.errors import ArsandboxError, MachineError, RefusedError, UsageError

DATA = os.urandom(300_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
H1, H2 = "a" * 64, "b" * 64


# Lock files


def test_a_lock_file_is_read_for_one_machine() -> None:
    text = (
        f"# note\nnumpy==2.4.6 \\\n    --hash=sha256:{H1} \\\n    --hash=sha256:{H2}\n"
        f"triton==3.5.1 ; platform_machine == 'x86_64' --hash=sha256:{H1}\n"
        f"tomli==2.0 ; python_version < '3.11' --hash=sha256:{H1}\n"
    )
    numpy, triton = LockedWheel("numpy==2.4.6", (H1, H2)), LockedWheel("triton==3.5.1", (H1,))
    assert locked_wheels(text, python="3.11", machine="x86_64") == (numpy, triton)
    assert locked_wheels(text, python="3.11", machine="aarch64") == (numpy,)


@pytest.mark.parametrize(
    "entry", ["numpy>=2", "numpy", "numpy==2.*", "numpy==2,!=3", "???", "numpy @ file:///x", "--index-url x"]
)
def test_an_entry_that_pins_nothing_is_refused(entry: str) -> None:
    with pytest.raises(UsageError, match="lock file"):
        locked_wheels(f"{entry} --hash=sha256:{H1}", python="3.11", machine="x86_64")
    with pytest.raises(UsageError, match="needs one exact version and sha256"):
        locked_wheels("numpy==2 --hash=sha256:abc", python="3.11", machine="x86_64")


# Downloads


@dataclass
class Server:
    """What a server on loopback sends, how far, and what it was asked for."""

    url: str = ""
    data: bytes = DATA
    cut_after: list[int] = field(default_factory=list)  # bytes of each of the next answers
    statuses: list[int] = field(default_factory=list)
    ranges: bool = True
    length: str = ""  # said instead of the true one
    location: str = ""  # where to ask instead
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range", "")
            state.asked.append(asked)
            if state.statuses:
                self.send_error(state.statuses.pop(0))
                return
            if state.location:
                self.send_response(302)
                self.send_header("Location", state.location)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            begin = int(asked.removeprefix("bytes=").rstrip("-")) if asked and state.ranges else 0
            if begin >= len(state.data):
                self.send_error(416)
                return
            body = state.data[begin:]
            self.send_response(206 if begin else 200)
            if begin:
                self.send_header("Content-Range", f"bytes {begin}-{len(state.data) - 1}/{len(state.data)}")
            self.send_header("Content-Length", state.length or str(len(body)))
            self.end_headers()
            self.wfile.write(body[: state.cut_after.pop(0)] if state.cut_after else body)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        state.url = f"http://127.0.0.1:{running.server_port}/x.whl"
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield state
        running.shutdown()
        thread.join()


def get(server: Server, target: Path, sha256: str = SHA256) -> list[tuple[int, int]]:
    seen: list[tuple[int, int]] = []
    fetch(server.url, sha256, target, transfer=lambda name, done, total: seen.append((done, total)), wait_s=0.001)
    return seen


def test_a_download_goes_on_where_the_connection_ended(server: Server, tmp_path: Path) -> None:
    server.cut_after = [100_000, 50_000]
    seen = get(server, tmp_path / "x.whl")
    assert (tmp_path / "x.whl").read_bytes() == DATA
    assert server.asked == ["", "bytes=100000-", "bytes=150000-"]
    assert seen[-1] == (len(DATA), len(DATA)) and {total for _, total in seen} == {len(DATA)}
    assert get(server, tmp_path / "x.whl") == [] and len(server.asked) == 3  # there already


def test_a_later_command_goes_on_with_what_an_earlier_one_left(server: Server, tmp_path: Path) -> None:
    server.cut_after = [60_000] + [0] * (downloads.TRIES - 1)
    with pytest.raises(MachineError, match=r"x\.whl cannot be downloaded from 127") as caught:
        get(server, tmp_path / "x.whl")
    assert "what has arrived is kept" in caught.value.hint
    assert len(server.asked) == downloads.TRIES  # bounded
    assert (tmp_path / "x.whl.partial").stat().st_size == 60_000
    get(server, tmp_path / "x.whl")
    assert server.asked[-1] == "bytes=60000-"
    assert (tmp_path / "x.whl").read_bytes() == DATA


def test_a_server_without_ranges_is_asked_for_all_of_it_again(server: Server, tmp_path: Path) -> None:
    server.ranges, server.cut_after = False, [100_000]
    get(server, tmp_path / "x.whl")
    assert (tmp_path / "x.whl").read_bytes() == DATA


def test_a_part_that_belongs_to_other_bytes_is_thrown_away(server: Server, tmp_path: Path) -> None:
    (tmp_path / "x.whl.partial").write_bytes(b"0" * 1000)
    with pytest.raises(RefusedError, match="but the lock file allows") as caught:
        get(server, tmp_path / "x.whl")
    assert caught.value.exit_code == 3
    assert [one.name for one in tmp_path.iterdir()] == ["x.whl.lock"]
    get(server, tmp_path / "x.whl")


def test_a_part_that_is_longer_than_the_file_is_thrown_away(server: Server, tmp_path: Path) -> None:
    (tmp_path / "x.whl.partial").write_bytes(DATA + b"more")
    with pytest.raises(RefusedError):
        get(server, tmp_path / "x.whl")
    assert not (tmp_path / "x.whl.partial").exists()


def test_a_busy_server_is_asked_again_and_a_refusing_one_is_not(server: Server, tmp_path: Path) -> None:
    server.statuses = [503, 429]
    get(server, tmp_path / "x.whl")
    assert len(server.asked) == 3
    server.statuses, server.asked = [404], []
    with pytest.raises(MachineError, match="404"):
        get(server, tmp_path / "y.whl")
    assert len(server.asked) == 1


@pytest.mark.parametrize("length", ["many", "-5", "\u00b2", "9" * 5000])
def test_a_length_that_is_none_is_not_believed(server: Server, tmp_path: Path, length: str) -> None:
    server.length = length
    get(server, tmp_path / "x.whl")
    assert (tmp_path / "x.whl").read_bytes() == DATA


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "ftp://a.example/x", "http://[::1", f"http://{'a' * 70}.example/", "//", "\0"]
)
def test_a_redirect_to_no_web_address_is_refused(server: Server, tmp_path: Path, location: str) -> None:
    server.location = location
    with pytest.raises(MachineError, match=r"x\.whl cannot be downloaded from 127"):
        get(server, tmp_path / "x.whl")
    assert not list(tmp_path.glob("x.whl*[!k]"))


def test_a_body_without_an_end_is_cut_off(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "LARGEST", len(DATA) - 1)
    with pytest.raises(RefusedError, match="more than"):
        get(server, tmp_path / "x.whl")
    assert not list(tmp_path.glob("x.whl*partial")) and not (tmp_path / "x.whl").exists()
    monkeypatch.setattr(downloads, "LARGEST", len(DATA))
    get(server, tmp_path / "x.whl")
    assert (tmp_path / "x.whl").read_bytes() == DATA


def test_a_pipe_or_a_device_is_no_wheel(tmp_path: Path) -> None:
    """An index may name any file: one that never ends must not be waited for, nor fill the disk."""
    os.mkfifo(tmp_path / "x.whl")
    for place in (str(tmp_path / "x.whl"), "/dev/zero"):
        with pytest.raises(MachineError, match="is no file"):
            fetch(f"file://{place}", SHA256, tmp_path / "to" / "x.whl", transfer=lambda *_: None)


def test_a_password_in_an_address_is_never_said(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.url = server.url.replace("//", "//someone:hunter2@")
    server.statuses = [403]
    with pytest.raises(MachineError, match="the server says 403") as caught:
        get(server, tmp_path / "x.whl")
    assert "hunter2" not in f"{caught.value.message}{caught.value.hint}"
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_INDEX_URL", "http://someone:hunter2@127.0.0.1:9/simple")
    with pytest.raises(MachineError) as caught:
        Indexes("3.11", platforms("x86_64")).locate(LockedWheel("mine==1.0", (H1,)))
    assert "hunter2" not in f"{caught.value.message}{caught.value.hint}"


def test_bytes_on_their_way_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bars on a terminal; elsewhere a line only where a file takes long; nothing with --json."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def shown(terminal: bool, quiet: bool = False) -> str:
        console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
        with Transfers(console, quiet=quiet) as transfers:
            for done in (0, 50_000_000, 100_000_000):
                transfers.arrived("torch.whl", done, 200_000_000)
                now[0] += 6
            transfers.arrived("small.whl", 10, 10)
        return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]

    assert shown(False) == "torch.whl: 95.4 MiB of 190.7 MiB\n"
    bars = shown(True)
    assert "torch.whl" in bars and "100.0/200.0 MB" in bars


def test_a_dead_server_is_given_up_on(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="cannot be downloaded from 127"):
        fetch("http://127.0.0.1:9/x.whl", SHA256, tmp_path / "x.whl", transfer=lambda *_: None, wait_s=0.001)


# The layer


def wheel(folder: Path, name: str = "mine", entries: dict[str, str] | None = None) -> Path:
    path = folder / f"{name}-1.0-py3-none-any.whl"
    files = {
        f"{name}/__init__.py": "X = 1\n",
        f"{name}/tests/test_x.py": "",
        f"{name}-1.0.dist-info/METADATA": f"Name: {name}\n",
        f"{name}-1.0.dist-info/RECORD": "",
        f"{name}-1.0.data/scripts/run": "#!python\n",
        f"{name}-1.0.data/purelib/other.py": "",
        f"{name}-1.0.data/data/share/{name}/table": "",
        f"{name}-1.0.data/data/share/man/man1/{name}.1": "",
        f"{name}-1.0.data/data/bin/tool": "",
        **(entries or {}),
    }
    with zipfile.ZipFile(path, "w") as archive:
        for entry, text in files.items():
            archive.writestr(entry, text)
        program = zipfile.ZipInfo(f"{name}/bin/ptxas")
        program.external_attr = 0o100755 << 16
        archive.writestr(program, "program")
    return path


def test_a_layer_holds_a_wheels_packages_and_data_and_no_scripts(tmp_path: Path) -> None:
    place = "usr/local/lib/python3.11/dist-packages"
    first, second = io.BytesIO(), io.BytesIO()
    made = [wheel(tmp_path), wheel(tmp_path, "second")]
    write_wheels(made, "3.11", first)
    write_wheels(list(reversed(made)), "3.11", second)
    assert first.getvalue() == second.getvalue()
    with tarfile.open(fileobj=io.BytesIO(first.getvalue())) as archive:
        files = {entry.name: entry.mode for entry in archive if entry.isfile()}
    assert files == {
        f"{place}/mine/__init__.py": 0o644, f"{place}/mine/bin/ptxas": 0o755, f"{place}/other.py": 0o644,
        f"{place}/mine-1.0.dist-info/METADATA": 0o644, "usr/local/share/mine/table": 0o644,
        f"{place}/second/__init__.py": 0o644, f"{place}/second/bin/ptxas": 0o755,
        f"{place}/second-1.0.dist-info/METADATA": 0o644, "usr/local/share/second/table": 0o644,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["../evil.py", "/etc/evil", "mine-1.0.data/data/../../../etc/evil"])
def test_a_wheel_that_reaches_outside_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(MachineError, match="outside its folder"):
        write_wheels([wheel(tmp_path, entries={name: ""})], "3.11", io.BytesIO())
    (tmp_path / "x.whl").write_bytes(b"no archive")
    with pytest.raises(MachineError, match=r"x\.whl is not a wheel"):
        write_wheels([tmp_path / "x.whl"], "3.11", io.BytesIO())


def test_a_wheel_that_cannot_be_unpacked_is_refused(tmp_path: Path) -> None:
    made = wheel(tmp_path, entries={"mine/data": "0123456789" * 10})
    made.write_bytes(made.read_bytes().replace(b"0123456789", b"0123456788"))
    with pytest.raises(MachineError, match="a wheel cannot be unpacked"):
        write_wheels([made], "3.11", io.BytesIO())


def test_a_build_leaves_the_wheels_that_another_one_reads(tmp_path: Path) -> None:
    kept = tmp_path / H1 / "x.whl"
    kept.parent.mkdir()
    kept.write_bytes(b"wheel")
    with borrowed(tmp_path), borrowed(tmp_path):
        remove_wheels(tmp_path, [("x.whl", H1)])
        assert kept.exists()
    remove_wheels(tmp_path, [("x.whl", H1)])
    assert not kept.exists()


# Indexes


def test_wheels_come_from_where_pip_is_set_up_to_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of wheels and no index: the real finder, over pip's own configuration."""
    made = wheel(tmp_path)
    sha256 = hashlib.sha256(made.read_bytes()).hexdigest()
    config = tmp_path / "pip.conf"
    config.write_text(f"[global]\nno-index = true\nfind-links = {tmp_path / 'nowhere'}\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    options = {"python": "3.11", "machine": "x86_64", "store": tmp_path / "store", "transfer": lambda *_: None}
    found = obtain_wheels([LockedWheel("mine==1.0", (H1, sha256))], **options)  # type: ignore[arg-type]
    assert found == [tmp_path / "store" / sha256 / made.name]
    assert found[0].read_bytes() == made.read_bytes()
    with pytest.raises(ArsandboxError, match=r"no wheel of mine==1\.0 with a locked hash fits Python 3\.11") as caught:
        obtain_wheels([LockedWheel("mine==1.0", (H1,))], **options)  # type: ignore[arg-type]
    assert caught.value.exit_code == 4


def test_pips_settings_are_read_as_pip_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "pip.conf"
    config.write_text("[global]\nindex-url = http://index.example/a\n[install]\nextra-index-url = http://b.example\n")
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    assert index_urls(pip_settings()) == ["http://index.example/a", "http://b.example"]
    monkeypatch.setenv("PIP_INDEX_URL", "http://c.example")
    assert index_urls(pip_settings())[0] == "http://c.example"
    assert index_urls({})[0].endswith("/simple")


def test_nothing_of_the_current_directory_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are built from within repositories that anybody may have written."""
    for name in ("pip.py", "ast.py", "sitecustomize.py"):
        (tmp_path / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    pip_settings()
    assert not (tmp_path / "ran").exists()


def test_an_index_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(MachineError, match=r"mine==1\.0"):
        Indexes("3.11", platforms("x86_64")).locate(LockedWheel("mine==1.0", (H1,)))

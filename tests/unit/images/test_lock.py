"""arsandbox.lock: what it says, what it refuses, and what a damaged image's export looks like."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from arsandbox.images import lock
from arsandbox.images.archive import Archive, ArchiveLayer, compose
from arsandbox.images.catalogue import PinnedImage
from arsandbox.images.contents import damage
from arsandbox.images.layers import LayerCache
from arsandbox.images.recipe import load_recipe
from arsandbox.images.tarlayer import file_member, write_layer
from arsandbox.sandbox import planning
from arsandbox.sandbox.errors import RefusedError, UsageError
from arsandbox.sandbox.models import ImageRef
from arsandbox.sandbox.settings import Options

A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64


def pinned(name: str = "cpu", digest: str = A) -> PinnedImage:
    return PinnedImage(
        name=name, digest=digest, recipe_sha256="c" * 64, size_bytes=1, built_at="2026-01-01T00:00:00Z",
        packages=(("libc6", "2.36"),), wheels=(("numpy-2.whl", "d" * 64),),
    )  # fmt: skip


def test_a_lock_says_digest_packages_and_wheels_and_keeps_other_names(tmp_path: Path) -> None:
    file = tmp_path / lock.FILE_NAME
    assert lock.read(file) is None
    lock.write(file, lock.ImageLock().with_images([pinned("torch-cpu", B)]))
    lock.write(file, (lock.read(file) or lock.ImageLock()).with_images([pinned()]))
    images = json.loads(file.read_text())["images"]
    assert list(images) == ["cpu", "torch-cpu"]
    assert images["cpu"] == {
        "digest": A, "reference": "", "packages": [["libc6", "2.36"]], "wheels": [["numpy-2.whl", "d" * 64]]
    }  # fmt: skip


@pytest.mark.parametrize("text", ["", "[]", '{"images": {"cpu": {"digest": "cpu:latest"}}}', '{"version": 2}'])
def test_a_lock_that_cannot_be_read_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match=r"^the lock: ") as caught:
        lock.parse(text.encode(), "the lock")
    assert caught.value.exit_code == 2


def repository(folder: Path, **files: str) -> Path:
    folder.mkdir()
    for name, text in {"train.py": "", **files}.items():
        (folder / name.replace("_", ".")).write_text(text)
    for arguments in (
        ("init", "-q", "-b", "main"),
        ("add", "-A"),
        ("-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "-qm", "base"),
    ):
        subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.mark.parametrize("name", ["", "a b", "x;reboot", "$(id)", "../x", "\\u001b[2J", "A", "x\\n"])
def test_a_lock_names_images_only_as_images_are_called(name: str) -> None:
    """Names reach the terminal, and commands that the user is told to type."""
    with pytest.raises(UsageError, match=r"^the lock: images"):
        lock.parse(f'{{"images": {{"{name}": {{"digest": "{A}"}}}}}}'.encode(), "the lock")


def test_a_lock_that_is_no_plain_file_or_too_large_is_refused_at_once(tmp_path: Path) -> None:
    file = tmp_path / lock.FILE_NAME
    file.symlink_to("/dev/zero")
    with pytest.raises(UsageError, match="no regular file"):
        lock.read(file)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(UsageError, match="no regular file"):
        lock.read(file)
    file.unlink()
    file.touch()
    os.truncate(file, 10**12)  # sparse: reading all of it would end the process
    with pytest.raises(UsageError, match="larger than 16 MiB"):
        lock.read(file)
    with pytest.raises(UsageError, match="larger than 16 MiB"):
        lock.parse(b" " * (lock.LARGEST_BYTES + 1), "the lock")


def test_a_lock_is_written_over_no_link_of_the_repositorys(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    for name in (lock.FILE_NAME, f".{lock.FILE_NAME}.{os.getpid()}.partial"):
        (tmp_path / name).symlink_to(tmp_path / "mine")
    lock.write(tmp_path / lock.FILE_NAME, lock.ImageLock())
    assert (tmp_path / "mine").read_text() == "precious"
    assert lock.read(tmp_path / lock.FILE_NAME) == lock.ImageLock()


def test_a_dry_run_of_an_image_that_is_not_built_asks_the_lock_for_its_name_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARSANDBOX_HOME", str(tmp_path / "home"))
    text = lock.ImageLock().with_images([pinned()]).text().decode()

    def plan(name: str) -> planning.Plan:
        place = repository(tmp_path / name, arsandbox_toml=f'image = "{name}"\n', arsandbox_lock=text)
        request = planning.Request(place, Options())
        return planning.plan(request, find_image=lambda _: ImageRef(name=name, digest=planning.NOT_BUILT))

    assert plan("cpu").image.digest == planning.NOT_BUILT
    with pytest.raises(RefusedError, match="does not lock the image 'torch-cpu'"):
        plan("torch-cpu")


@pytest.mark.parametrize(
    ("locked", "here", "said"),
    [
        (A, A, ""),
        (B, A, r"image cpu is sha256:aaaaaaaaaaaa… here, but arsandbox.lock at [0-9a-f]{12} says sha256:bbbbbbbbbbbb…"),
        ("", A, "does not lock the image 'cpu'"),
    ],
)
def test_a_plan_refuses_what_the_base_commit_does_not_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locked: str, here: str, said: str
) -> None:
    monkeypatch.setenv("ARSANDBOX_HOME", str(tmp_path / "home"))
    entries = lock.ImageLock().with_images([pinned(digest=locked)] if locked else [])
    place = repository(tmp_path / "repo", arsandbox_toml='image = "cpu"\n', arsandbox_lock=entries.text().decode())
    # The working tree's lock never counts.
    (place / lock.FILE_NAME).write_text("{")

    def plan(name: str = "cpu") -> planning.Plan:
        request = planning.Request(place, Options())
        return planning.plan(request, find_image=lambda _: ImageRef(name=name, digest=here))

    if said:
        with pytest.raises(RefusedError, match=said) as caught:
            plan()
        assert caught.value.exit_code == 3 and "arsandbox image lock cpu" in caught.value.hint
        assert plan("host").image.name == "host"  # an engine's own base is no image to lock
    else:
        found = plan()
        assert found.image.digest == A
        # The candidate cannot change what it runs in.
        assert found.settings.rules.is_protected(lock.FILE_NAME)
        assert any(lock.FILE_NAME in line for line in found.refusals)


def composed(tmp_path: Path, *contents: bytes) -> Archive:
    layers = []
    for number, data in enumerate(contents):
        buffer = io.BytesIO()
        write_layer(buffer, [file_member("x", data)])
        path = tmp_path / f"{number}.tar"
        path.write_bytes(buffer.getvalue())
        cache = LayerCache(tmp_path / "cache")
        made = cache.obtain(f"a{number}", lambda target, data=buffer: (target.write(data.getvalue()), ())[1])  # type: ignore[misc]
        layers.append(ArchiveLayer(cache.path(made), made.sha256, made.size_bytes, "test"))
    return compose(load_recipe("cpu"), "x86_64", layers)


def test_an_export_is_what_its_id_says_or_is_damaged(tmp_path: Path) -> None:
    archive = composed(tmp_path, b"1" * 5000, b"2" * 5000, b"1" * 5000)
    assert damage(archive.stream(), archive.image_id) == ""
    assert damage((piece[:7] for piece in archive.stream()), archive.image_id).startswith("its export cannot be read")
    assert damage(archive.stream(), A) == "its configuration is another one"
    changed = b"".join(archive.stream()).replace(b"2" * 5000, b"2" * 4999 + b"3")
    assert damage(iter([changed]), archive.image_id) == "layer 2 of 3 has other contents"
    assert damage(iter([b""]), archive.image_id).startswith("its export cannot be read")


def test_engines_that_link_equal_layers_are_understood(tmp_path: Path) -> None:
    """Docker 20.10 writes a layer once and links to it."""
    archive = composed(tmp_path, b"1", b"1")
    with tarfile.open(fileobj=io.BytesIO(b"".join(archive.stream()))) as source:
        files = {entry.name: source.extractfile(entry).read() for entry in source}  # type: ignore[union-attr]
    manifest = json.loads(files.pop("manifest.json"))
    manifest[0]["Layers"][1] = "other/layer.tar"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as target:
        for name, data in {**files, "manifest.json": json.dumps(manifest).encode()}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            target.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("other/layer.tar")
        link.type, link.linkname = tarfile.SYMTYPE, f"../{manifest[0]['Layers'][0]}"
        target.addfile(link)
    assert damage(iter([buffer.getvalue()]), archive.image_id) == ""

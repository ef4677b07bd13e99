"""Archives: the same every time."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest

from arsandbox.images.archive import ArchiveLayer, compose
from arsandbox.images.recipe import load_recipe
from arsandbox.images.tarlayer import file_member, with_parents, write_layer
from arsandbox.sandbox.errors import MachineError, StateError


def layer(folder: Path, name: str, data: bytes) -> ArchiveLayer:
    buffer = io.BytesIO()
    write_layer(buffer, with_parents([file_member(name, data)]))
    path = folder / f"{hashlib.sha256(buffer.getvalue()).hexdigest()}.tar"
    path.write_bytes(buffer.getvalue())
    return ArchiveLayer(path, path.stem, len(buffer.getvalue()), "test")


# Archives
def test_an_archive_is_the_same_every_time_and_its_id_is_the_configurations_hash(tmp_path: Path) -> None:
    layers = [layer(tmp_path, "a/b", b"1" * 700), layer(tmp_path, "c", b"2")]
    archive = compose(load_recipe("cpu"), "x86_64", layers)
    data = b"".join(archive.stream())
    assert data == b"".join(compose(load_recipe("cpu"), "x86_64", layers).stream())
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        manifest = json.loads(tar.extractfile("manifest.json").read())[0]  # type: ignore[union-attr]
        config = tar.extractfile(manifest["Config"]).read()  # type: ignore[union-attr]
        diff_ids = [
            hashlib.sha256(tar.extractfile(name).read()).hexdigest()  # type: ignore[union-attr]
            for name in manifest["Layers"]
        ]
    assert archive.image_id == f"sha256:{hashlib.sha256(config).hexdigest()}"
    assert manifest["RepoTags"] == [f"arsandbox/cpu:{archive.image_id[7:19]}"]
    parsed = json.loads(config)
    assert parsed["rootfs"]["diff_ids"] == [f"sha256:{one}" for one in diff_ids]
    assert parsed["architecture"] == "amd64"
    assert parsed["config"]["User"] == "61000:61000"
    assert parsed["config"]["WorkingDir"] == "/workspace"
    assert parsed["config"]["Labels"] == {
        "arsandbox.image": "cpu",
        "arsandbox.recipe": load_recipe("cpu").digest,
    }


def test_equal_layers_are_stored_once(tmp_path: Path) -> None:
    one = layer(tmp_path, "a", b"1")
    data = b"".join(compose(load_recipe("cpu"), "aarch64", [one, one]).stream())
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.getnames().count(f"{one.sha256}/layer.tar") == 1


@pytest.mark.parametrize("spoil", [lambda path: path.write_bytes(b"short"), lambda path: path.unlink()])
def test_a_layer_that_changed_is_not_passed_on_silently(tmp_path: Path, spoil: object) -> None:
    one = layer(tmp_path, "a", b"1")
    spoil(one.path)  # type: ignore[operator]
    with pytest.raises(StateError, match="layer"):
        list(compose(load_recipe("cpu"), "x86_64", [one]).stream())


def test_another_processor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="riscv64"):
        compose(load_recipe("cpu"), "riscv64", [])

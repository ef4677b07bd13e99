"""Is an image that an engine holds what its ID says? Its own export is hashed again, layer by layer."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterable, Iterator
from typing import IO, cast

from arsandbox.images.layers import CHUNK

_LARGEST_JSON = 16 * 1024 * 1024


def damage(archive: Iterable[bytes], image_id: str) -> str:
    """What is wrong with the exported image in `archive`, in a few words; empty if it is the image `image_id`.

    The ID is the hash of the configuration, which names every layer by its hash: nothing else is believed.
    """
    hashes: dict[str, str] = {}
    small: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=cast("IO[bytes]", _Stream(iter(archive))), mode="r|", bufsize=CHUNK) as tar:
            for entry in tar:
                if entry.issym() or entry.islnk():
                    target = entry.linkname.removeprefix("../")
                    hashes[entry.name] = f"-> {target}"
                elif (source := tar.extractfile(entry)) is not None:
                    digest, kept = hashlib.sha256(), entry.size <= _LARGEST_JSON
                    while piece := source.read(CHUNK):
                        digest.update(piece)
                        if kept:
                            small[entry.name] = small.get(entry.name, b"") + piece
                    hashes[entry.name] = digest.hexdigest()
        manifest = json.loads(small["manifest.json"])[0]
        wanted = image_id.removeprefix("sha256:")
        if hashes[manifest["Config"]] != wanted:
            return "its configuration is another one"
        layers = json.loads(small[manifest["Config"]])["rootfs"]["diff_ids"]
        found = [_resolved(hashes, name) for name in manifest["Layers"]]
    except (tarfile.TarError, ValueError, KeyError, TypeError, IndexError) as error:
        return f"its export cannot be read ({type(error).__name__})"
    changed = [
        number for number, (is_, should) in enumerate(zip(found, layers, strict=False)) if f"sha256:{is_}" != should
    ]
    if len(found) != len(layers) or changed:
        return f"layer {changed[0] + 1 if changed else len(found)} of {len(layers)} has other contents"
    return ""


def _resolved(hashes: dict[str, str], name: str) -> str:
    """The hash of `name`, through one link: engines write equal layers once."""
    found = hashes[name]
    return hashes[found.removeprefix("-> ")] if found.startswith("-> ") else found


class _Stream:
    """Pieces of bytes as a file that can be read once."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._rest = pieces, b""

    def read(self, size: int) -> bytes:
        """At most `size` bytes."""
        while len(self._rest) < size and (piece := next(self._pieces, b"")):
            self._rest += piece
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken

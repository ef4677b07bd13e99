"""Which GPUs a run asks for: `none`, a number, or UUIDs. Never all of them by default."""

from __future__ import annotations

import re
from typing import Literal

from arsandbox.images.recipe import available, load_recipe
from arsandbox.sandbox.errors import UsageError
from arsandbox.sandbox.models import Model

NONE = "none"
Key = Literal["--gpus", "[evaluate] gpus"]
TRAIN: Key = "--gpus"
EVALUATE: Key = "[evaluate] gpus"
_UUID = re.compile(r"(?:GPU|MIG)-[0-9A-Za-z/-]{1,80}")
_EXAMPLE = "write it like none, 1, or the UUIDs that `nvidia-smi -L` lists: GPU-8f3c…,GPU-51aa…"


class GpuRequest(Model):
    """`count` devices, whichever are free; or exactly those that `uuids` names (whole GPUs or MIG devices).

    `key` is where it was asked for.
    """

    count: int = 0
    uuids: tuple[str, ...] = ()
    key: Key = TRAIN

    @property
    def number(self) -> int:
        """How many devices are asked for."""
        return len(self.uuids) or self.count

    def instead(self, number: int) -> str:
        """How `number` devices are asked for instead, for whoever reads a refusal."""
        return f"--gpus {number or NONE}" if self.key == TRAIN else f"{self.key} = {number}"

    def __str__(self) -> str:
        """As `--gpus` takes it."""
        return ",".join(self.uuids) or (str(self.count) if self.count else NONE)


def parse(text: str, *, what: str) -> GpuRequest:
    """The request in `text`. Raises UsageError naming `what`, the value and an example."""
    told = text.strip()
    if told == NONE:
        return GpuRequest()
    if re.fullmatch(r"[0-9]{1,4}", told):
        return GpuRequest(count=int(told))
    uuids = [part.strip() for part in told.split(",")]
    for uuid in uuids:
        if not _UUID.fullmatch(uuid):
            raise UsageError(f"{what}: {text!r} is neither `none` nor a number nor UUIDs", hint=_EXAMPLE)
    if len(set(uuids)) < len(uuids):
        raise UsageError(f"{what}: {text!r} names a device twice", hint=_EXAMPLE)
    return GpuRequest(uuids=tuple(sorted(uuids)))


def default_for(image: str) -> GpuRequest:
    """What the image `image` asks for where nobody says anything: its recipe's word, else one for `cuda*`."""
    if image in available():
        return parse(load_recipe(image).default_gpus, what=f"default_gpus of the image {image}")
    return GpuRequest(count=1 if image.startswith("cuda") else 0)

"""GPUs: driver, container toolkit, CDI, and a grant that is tried."""

from __future__ import annotations

import json
import re
from pathlib import Path

from arsandbox.sandbox import advisories, host, state
from arsandbox.sandbox.doctor.engines import Opened
from arsandbox.sandbox.doctor.rows import Row
from arsandbox.sandbox.engines.port import EngineFacts, GpuOffer
from arsandbox.sandbox.errors import ArsandboxError
from arsandbox.sandbox.gpu import grant as granting
from arsandbox.sandbox.gpu import nvml
from arsandbox.sandbox.gpu.request import GpuRequest
from arsandbox.sandbox.imaging import catalogue
from arsandbox.sandbox.models import ImageRef, utc_now
from arsandbox.sandbox.quantities import format_size

_PCI = Path("/sys/bus/pci/devices")
_NVIDIA, _DISPLAY = "0x10de", "0x03"
_INSTALL = "sudo apt-get install nvidia-container-toolkit && sudo systemctl restart docker"
_DESCRIBE = "sudo nvidia-ctk cdi generate --device-name-strategy=uuid --output=/etc/cdi/nvidia.yaml"
_KIND = re.compile(r"[\"']?kind[\"']?\s*:\s*[\"']?nvidia\.com/gpu\b")


def driver(*, wanted: bool) -> Row:
    """The driver and its devices; none is no fault unless a GPU is there, or wanted."""
    try:
        with nvml.session() as opened:
            devices, version = opened.devices(), opened.driver()
    except ArsandboxError as error:
        if wanted:
            return Row(name="gpu", status="missing", detail=error.message, fix=error.hint)
        if _has_card():
            return Row(name="gpu", status="warning", detail=f"a GPU is there, but {error.message}", fix=error.hint)
        return Row(name="gpu", status="ok", detail=f"{error.message}: images for the CPU alone")
    if not devices:
        fix = "nvidia-smi says more"
        status = "missing" if wanted else "warning"
        return Row(name="gpu", status=status, detail=f"driver {version} sees no device", fix=fix)
    named = ", ".join(f"{one.name} {format_size(one.memory_bytes)}" for one in devices)
    return Row(name="gpu", status="ok", detail=f"driver {version}: {named}")


def toolkit(facts: EngineFacts | None, *, wanted: bool) -> Row:
    """NVIDIA's container toolkit and its known holes."""
    installed = advisories.toolkit_version()
    if installed is None:
        if not (wanted or _present()) or _specifications(facts):
            return Row(name="toolkit", status="ok", detail="no NVIDIA container toolkit, and none is needed")
        return Row(name="toolkit", status="warning", detail="no NVIDIA container toolkit", fix=_INSTALL)
    holes = advisories.toolkit_holes()
    if holes:
        named = "; ".join(one.cve for one in holes)
        fix = f"sudo apt-get install --only-upgrade nvidia-container-toolkit ({holes[-1].fixed[-1]} or later)"
        return Row(name="toolkit", status="missing", detail=f"{installed[0]} has known holes: {named}", fix=fix)
    if installed[0] == advisories.UNKNOWN:
        told = "NVIDIA's container toolkit does not say its version: it may have known holes"
        return Row(name="toolkit", status="warning", detail=told, fix=_INSTALL)
    return Row(name="toolkit", status="ok", detail=installed[0])


def cdi(facts: EngineFacts | None) -> Row:
    """The Container Device Interface: whether the engine reads specifications, and whether one is of NVIDIA's GPUs."""
    if facts is None:
        return Row(name="cdi", status="ok", detail="not known for this engine")
    if not facts.cdi_directories:
        detail = "this engine reads no specifications (25 or later can): the runtime hook is used"
        return Row(name="cdi", status="ok", detail=detail)
    found = _specifications(facts)
    if found:
        return Row(name="cdi", status="ok", detail=", ".join(map(str, found)))
    detail = f"no specification of NVIDIA GPUs in {', '.join(facts.cdi_directories)}"
    if not _present():
        return Row(name="cdi", status="ok", detail=detail)
    return Row(name="cdi", status="warning", detail=f"{detail}: the runtime hook is used", fix=_DESCRIBE)


def grant(opened: Opened) -> Row:
    """A small container with the very request that a run would make."""
    if opened.engine is None:
        return Row(name="grant", status="missing", detail="cannot be tried without an engine", fix="see engine above")
    if not isinstance(opened.engine, GpuOffer):
        detail = f"the {opened.name} engine grants no GPUs"
        return Row(name="grant", status="missing", detail=detail, fix="arsandbox doctor --gpu --engine docker")
    try:
        pinned = {entry.name: entry.digest for entry in catalogue().entries()}
        held = [name for name in sorted(pinned, key=_first) if opened.engine.has_image(pinned[name])]
        if not held:
            fix = "arsandbox image build cpu"
            return Row(name="grant", status="missing", detail="there is no image to try it with", fix=fix)
        image = ImageRef(name=held[0], digest=pinned[held[0]])
        labels = host.labels(f"gpu-trial-{state.new_experiment_id()}", utc_now())
        way = granting.require(GpuRequest(count=1), opened.engine, image, labels=labels)
    except ArsandboxError as error:
        return Row(name="grant", status="missing", detail=error.message, fix=error.hint)
    return Row(name="grant", status="ok", detail=f"a container of {image.name} was given a GPU by {way}")


def _first(name: str) -> tuple[bool, str]:
    """Images made for GPUs before others."""
    return not name.startswith("cuda"), name


def _has_card() -> bool:
    """Whether a display or compute device of NVIDIA's is on the PCI bus, with a driver or without."""
    for device in _PCI.glob("*"):
        try:
            if (device / "vendor").read_text().strip() != _NVIDIA:
                continue
            if (device / "class").read_text().startswith(_DISPLAY):
                return True
        except OSError:
            continue  # unplugged meanwhile
    return False


def _present() -> bool:
    return bool(nvml.facts()) or _has_card()


def _specifications(facts: EngineFacts | None) -> list[Path]:
    """The CDI files that the engine reads and that name NVIDIA's GPUs."""
    found = []
    for directory in facts.cdi_directories if facts is not None else ():
        for file in sorted(Path(directory).glob("*")):
            if file.suffix in (".yaml", ".yml", ".json") and file.is_file() and _names_gpus(file):
                found.append(file)
    return found


def _names_gpus(file: Path) -> bool:
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    if file.suffix != ".json":
        return bool(_KIND.search(text))
    try:
        return bool(json.loads(text).get("kind") == "nvidia.com/gpu")
    except (ValueError, AttributeError):
        return False

"""Images in and out of a Docker engine: pull by digest, export, build on a base."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
from docker.errors import BuildError
from tenacity import before_sleep_log, retry, retry_if_exception, stop_after_attempt, wait_exponential

from arsandbox.sandbox.engines.docker.client import APIError, ImageNotFound, NotFound, translated
from arsandbox.sandbox.engines.port import ImageFacts
from arsandbox.sandbox.errors import MachineError, RefusedError

_log = logging.getLogger(__name__)
TRIES = 3
_FIRST_STAGE = "arsandbox.stage=wheels"  # see Dockerfile.train


class _PullError(Exception):
    """The engine's own words for why a pull ended; perhaps the network's fault."""


def pull(client: docker.DockerClient, reference: str) -> ImageFacts:
    """See the port."""
    repository, _, digest = reference.rpartition("@")
    with translated(f"pull {reference}"):
        try:
            _pulled(client, repository, digest)
        except NotFound as error:
            raise MachineError(
                f"{reference} is not in its registry", hint="is the digest the manifest's, and may you read it?"
            ) from error
        except (_PullError, APIError) as error:
            said = str(getattr(error, "explanation", "") or error).splitlines()[0]
            raise MachineError(
                f"cannot pull {reference} ({TRIES} tries): {said}", hint="is the registry up? then run it again"
            ) from error
        found = client.images.get(reference)
        # The engine checks what it pulls; this holds it to having done so.
        if reference not in (found.attrs.get("RepoDigests") or []):
            raise RefusedError(f"the engine pulled another image than {reference}")
        return facts(found.attrs)


@retry(
    retry=retry_if_exception(
        lambda error: isinstance(error, _PullError | APIError) and not isinstance(error, NotFound)
    ),
    stop=stop_after_attempt(TRIES),
    wait=wait_exponential(multiplier=0.5, max=10),
    before_sleep=before_sleep_log(_log, logging.INFO),
    reraise=True,
)
def _pulled(client: docker.DockerClient, repository: str, digest: str) -> None:
    for line in client.api.pull(repository, tag=digest, stream=True, decode=True):
        if "error" in line:
            raise _PullError(line["error"])


def facts(attributes: dict[str, Any]) -> ImageFacts:
    """What the engine's description of an image says."""
    return ImageFacts(
        digest=attributes["Id"],
        architecture=attributes["Architecture"],
        system=attributes["Os"],
        size_bytes=attributes["Size"],
        volumes=tuple(sorted((attributes.get("Config") or {}).get("Volumes") or {})),
    )


def export(client: docker.DockerClient, digest: str) -> Iterator[bytes]:
    """See the port."""
    with translated("export an image"):
        try:
            yield from client.images.get(digest).save(chunk_size=1024 * 1024)
        except ImageNotFound as error:
            raise MachineError(f"the image {digest[:19]}… is not in the engine") from error
        except APIError as error:  # it answers, and holds the image, but its checksums do not agree
            raise RefusedError(f"the engine cannot read it whole: {error.explanation}") from error


def derive(client: docker.DockerClient, context: Path, arguments: dict[str, str]) -> ImageFacts:
    """See the port."""
    with translated("build on a base"):
        try:
            built, _ = client.images.build(
                path=str(context), buildargs=arguments, network_mode="none", rm=True, forcerm=True
            )
        except BuildError as error:
            lines = [str(line.get("stream", "")).strip() for line in error.build_log if line.get("stream")]
            telling = [line for line in lines if "ERROR" in line or "Error" in line] or [error.msg]
            raise MachineError(f"building on {arguments.get('BASE', 'the base')} failed: {telling[-1]}") from error
        # The classic builder leaves the first stage, with all the wheels, as an image without a name.
        client.images.prune(filters={"dangling": True, "label": [_FIRST_STAGE]})
        return facts(built.attrs)

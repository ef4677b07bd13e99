"""The environment variables that a command gets from every engine; nothing of the host's passes."""

from __future__ import annotations

from arsandbox.sandbox.engines.port import SandboxSpec


def variables(spec: SandboxSpec, uid: int, *, path: str) -> dict[str, str]:
    """Name to value: ours with `path` as PATH, then the spec's own, which win."""
    threads = str(max(1, int(spec.limits.cpus)))
    return {
        "PATH": path,
        "HOME": "/tmp",  # noqa: S108 - the sandbox's own tmpfs
        "USER": "sandbox",
        "LOGNAME": "sandbox",
        "LANG": "C.UTF-8",
        "TMPDIR": "/tmp",  # noqa: S108
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "ARSANDBOX_STAGE": spec.stage.value,
        "ARSANDBOX_UID": str(uid),
        **spec.environment,
    }

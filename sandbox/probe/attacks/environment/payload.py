KNOWN = {
    "PATH",
    "HOSTNAME",
    "HOME",
    "USER",
    "LOGNAME",
    "LANG",
    "TMPDIR",
    "PYTHONUNBUFFERED",
    "PYTHONDONTWRITEBYTECODE",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NVIDIA_VISIBLE_DEVICES",
    "NVIDIA_DRIVER_CAPABILITIES",
    "LD_PRELOAD",
    "LD_LIBRARY_PATH",
    "ARSANDBOX_STAGE",
    "ARSANDBOX_UID",
    "LC_CTYPE",
    "PWD",  # the embedded engine sets it to the working directory
}


def attack():
    own = {name: value for name, value in os.environ.items() if name not in KNOWN}
    loaded = [name for name in ("LD_PRELOAD", "LD_LIBRARY_PATH") if os.environ.get(name)]
    return f"{sorted(own) + loaded}" if own or loaded else None

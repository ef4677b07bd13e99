KNOWN = {
    "/",
    "/dev",
    "/dev/pts",
    "/dev/shm",
    "/dev/mqueue",
    "/etc/hostname",
    "/etc/hosts",
    "/etc/resolv.conf",
    "/proc",
    "/sys",
    "/tmp",
    "/workspace",
    "/dev/console",
    "/run",
    "/var/tmp",
    "/etc/passwd",
    "/etc/group",
}
# The embedded engine has no image: it shows the system's own files and arsandbox's Python, and says so.
ENVIRONMENT = ()
if os.path.exists("/opt/venv/pyvenv.cfg"):
    ENVIRONMENT = (
        "/usr", "/bin", "/sbin", "/lib", "/opt/venv/", "/etc/ld.so.cache", "/etc/alternatives", "/etc/nsswitch.conf",
        "/etc/ssl/certs", sys.base_prefix,
    )  # fmt: skip


def attack():
    for point, _, _, _, source, root in mounts():
        if point in KNOWN or point.startswith(("/proc/", "/sys/", "/dev/", *ENVIRONMENT)):
            continue
        return f"{point} from {source} {root}"
    return None

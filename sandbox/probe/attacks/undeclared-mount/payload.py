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


def attack():
    for point, _, _, _, source, root in mounts():
        if point in KNOWN or point.startswith(("/proc/", "/sys/", "/dev/")):
            continue
        return f"{point} from {source} {root}"
    return None

def attack():
    for place, _, names in os.walk("/sys/fs/cgroup"):
        for name in names:
            if name in ("release_agent", "cgroup.procs", "tasks", "memory.limit_in_bytes", "memory.max", "pids.max"):
                try:
                    os.close(os.open(os.path.join(place, name), os.O_WRONLY))
                except OSError as error:
                    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
                        continue
                    raise
                return os.path.join(place, name)
    return None

def attack():
    pid = child()
    try:
        return f"descriptor {syscall('pidfd_getfd', syscall('pidfd_open', pid, 0), 1, 0)}"
    finally:
        os.kill(pid, signal.SIGKILL)

def attack():
    pid = child()
    try:
        syscall("ptrace", 16, pid, 0, 0)
        return f"traces {pid}"
    finally:
        os.kill(pid, signal.SIGKILL)

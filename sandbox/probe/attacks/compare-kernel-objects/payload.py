def attack():
    pid = child()
    try:
        return f"kcmp gave {syscall('kcmp', os.getpid(), pid, 1, 0, 0)}"
    finally:
        os.kill(pid, signal.SIGKILL)

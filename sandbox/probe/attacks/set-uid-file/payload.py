import stat
import time


def gained(path):
    pid = os.fork()
    if pid == 0:
        for number in range(3):
            os.dup2(os.open("/dev/null", os.O_RDWR), number)
        try:
            os.execv(path, [path])
        finally:
            os._exit(1)
    try:
        for _ in range(10):
            time.sleep(0.02)
            with open(f"/proc/{pid}/status") as file:
                real, effective = next(line.split()[1:3] for line in file if line.startswith("Uid:"))
            if real != effective:
                return True
        return False
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def attack():
    tried = 0
    for place in ("/usr/bin", "/usr/sbin", "/usr/lib/openssh", "/bin", "/opt", "/workspace"):
        for name in sorted(os.listdir(place)) if os.path.isdir(place) else ():
            path = os.path.join(place, name)
            if os.path.isfile(path) and os.stat(path).st_mode & stat.S_ISUID and os.access(path, os.X_OK) and tried < 5:
                tried += 1
                if gained(path):
                    return path
    return None

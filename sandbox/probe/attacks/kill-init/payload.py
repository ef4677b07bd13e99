import time


def attack():
    for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGALRM + 0, signal.SIGTERM)[:2]:
        os.kill(1, number)
    time.sleep(0.2)
    with open("/proc/1/stat") as file:
        state = file.read().rpartition(")")[2].split()[0]
    return f"process 1 is in state {state}" if state in "TtZX" else None

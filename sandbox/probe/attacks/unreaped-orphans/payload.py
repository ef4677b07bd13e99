import time


def attack():
    read, write = os.pipe()
    middle = os.fork()
    if middle == 0:
        orphan = os.fork()
        if orphan == 0:
            time.sleep(0.2)
            os._exit(0)
        os.write(write, str(orphan).encode())
        os._exit(0)
    os.waitpid(middle, 0)
    orphan = int(os.read(read, 20))
    for _ in range(50):
        time.sleep(0.1)
        try:
            with open(f"/proc/{orphan}/stat") as file:
                state = file.read().rpartition(")")[2].split()[0]
        except OSError:
            return None
    return f"the orphan {orphan} is still there, state {state}"

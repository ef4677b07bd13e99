def attack():
    return f"descriptor {syscall('socket', 40, 1, 0)}"

def attack():
    return f"descriptor {syscall('socket', 2, 3, 1)}"

def attack():
    return f"descriptor {syscall('socket', 38, 5, 0)}"

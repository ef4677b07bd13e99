def attack():
    return f"descriptor {syscall('socket', 15, 3, 2)}"

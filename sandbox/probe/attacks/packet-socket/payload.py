def attack():
    return f"descriptor {syscall('socket', 17, 3, 0)}"

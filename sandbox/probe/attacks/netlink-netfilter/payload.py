def attack():
    return f"descriptor {syscall('socket', 16, 3, 12)}"

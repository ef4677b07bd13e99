def attack():
    return f"personality was {syscall('personality', 0x0040000)}"

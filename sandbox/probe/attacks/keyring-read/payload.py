def attack():
    return f"keyring {syscall('keyctl', 0, -3, 1)}"

def attack():
    name = ctypes.c_char_p(b"arsandbox-probe")
    return f"descriptor {syscall('mq_open', name, os.O_CREAT | os.O_RDWR, 0o600, None)}"

def attack():
    key = syscall("add_key", ctypes.c_char_p(b"user"), ctypes.c_char_p(b"mark"), ctypes.c_char_p(b"x"), 1, -4)
    return f"key {key}"

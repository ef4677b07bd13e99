def attack():
    syscall("init_module", ctypes.create_string_buffer(16), 16, ctypes.c_char_p(b""))
    return "init_module"

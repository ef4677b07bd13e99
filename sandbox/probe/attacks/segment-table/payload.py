def attack():
    return f"modify_ldt gave {syscall('modify_ldt', 0, ctypes.create_string_buffer(64), 64)}"

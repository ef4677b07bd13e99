def attack():
    descriptor = syscall("fsopen", ctypes.c_char_p(b"tmpfs"), 0)
    return f"fsopen gave {descriptor}"

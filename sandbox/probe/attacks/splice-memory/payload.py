def attack():
    _, write = os.pipe()
    page = ctypes.create_string_buffer(4096)
    vector = (ctypes.c_void_p * 2)(ctypes.addressof(page), 4096)
    return f"vmsplice gave {syscall('vmsplice', write, ctypes.byref(vector), 1, 0)}"

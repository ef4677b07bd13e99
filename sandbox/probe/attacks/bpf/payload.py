def attack():
    attributes = bytes([2, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0]) + bytes(112)  # an array map with one entry
    return f"bpf gave {syscall('bpf', 0, ctypes.create_string_buffer(attributes), 128)}"

def attack():
    return f"io_uring_setup gave {syscall('io_uring_setup', 1, ctypes.create_string_buffer(120))}"

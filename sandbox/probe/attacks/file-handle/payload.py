import struct


def attack():
    handle = ctypes.create_string_buffer(struct.pack("<II", 128, 0) + bytes(128))
    mount = ctypes.c_int()
    syscall("name_to_handle_at", -100, ctypes.c_char_p(b"/tmp"), ctypes.byref(handle), ctypes.byref(mount), 0)
    return "a handle of /tmp"

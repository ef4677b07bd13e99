import struct


def attack():
    attributes = ctypes.create_string_buffer(struct.pack("<IIQQQQQ", 1, 112, 1, 0, 0, 0, 1 << 5 | 1 << 6), 112)
    return f"perf_event_open gave {syscall('perf_event_open', ctypes.byref(attributes), 0, -1, -1, 0)}"

def attack():
    return f"{syscall('syslog', 3, ctypes.create_string_buffer(4096), 4096)} bytes"

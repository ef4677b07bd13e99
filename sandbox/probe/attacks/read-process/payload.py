def attack():
    secret = ctypes.create_string_buffer(b"secret")
    pid = child()
    try:
        got = ctypes.create_string_buffer(6)
        vector = (ctypes.c_void_p * 2)(ctypes.addressof(got), 6)
        other = (ctypes.c_void_p * 2)(ctypes.addressof(secret), 6)
        syscall("process_vm_readv", pid, ctypes.byref(vector), 1, ctypes.byref(other), 1, 0)
        return got.raw.decode("latin-1") or "it went"
    finally:
        os.kill(pid, signal.SIGKILL)

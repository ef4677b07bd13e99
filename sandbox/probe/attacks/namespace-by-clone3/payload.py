import struct


def attack():
    arguments = ctypes.create_string_buffer(struct.pack("<8Q", 0x10000000, 0, 0, 0, 17, 0, 0, 0), 64)
    pid = syscall("clone3", ctypes.byref(arguments), 64)
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return "clone3(CLONE_NEWUSER)"

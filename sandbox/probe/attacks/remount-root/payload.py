def attack():
    if libc.mount(None, b"/", None, 32 | 4096, None) != 0:  # MS_REMOUNT | MS_BIND, without MS_RDONLY
        raise OSError(ctypes.get_errno(), "mount")
    return "the root is writable"

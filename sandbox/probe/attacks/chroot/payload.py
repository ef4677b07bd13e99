def attack():
    syscall("chroot", ctypes.c_char_p(b"/tmp"))
    return "its root is /tmp"

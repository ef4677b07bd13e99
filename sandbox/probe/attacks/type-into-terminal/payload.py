import pty


def attack():
    _, slave = pty.openpty()
    for command in (0x5412, 0x100005412):
        if libc.ioctl(slave, ctypes.c_ulong(command), ctypes.c_char_p(b"x")) == 0:
            return "TIOCSTI"
        if ctypes.get_errno() != errno.EPERM:
            return f"the terminal answered: {os.strerror(ctypes.get_errno())}"
    raise PermissionError(errno.EPERM, "TIOCSTI")

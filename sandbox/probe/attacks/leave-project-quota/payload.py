def attack():
    with open("file", "wb") as file:
        for command in (0x401C5820, 0x1401C5820):
            try:
                ctypes.set_errno(0)
                if libc.ioctl(file.fileno(), ctypes.c_ulong(command), ctypes.create_string_buffer(28)) == -1:
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
                return "project id changed"
            except OSError as error:
                if error.errno != errno.EPERM:
                    return f"the file system answered: {error}"
    raise PermissionError(errno.EPERM, "FS_IOC_FSSETXATTR")

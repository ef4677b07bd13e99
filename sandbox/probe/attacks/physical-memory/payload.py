def attack():
    for name in ("mem", "port", "kmem", "kmsg", "vda", "sda", "nvme0", "fuse", "kvm", "loop0"):
        try:
            os.close(os.open(f"/dev/{name}", os.O_RDONLY | os.O_NONBLOCK))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EACCES, errno.EPERM):
                continue
            raise
        return f"/dev/{name}"
    return None

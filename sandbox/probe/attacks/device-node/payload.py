import stat


def attack():
    os.mknod("/tmp/null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    return "/tmp/null is a device"

import stat


def attack():
    os.mknod("/tmp/forged", 0o666 | stat.S_IFCHR, os.makedev(0, 0))
    return "a device node without a capability"

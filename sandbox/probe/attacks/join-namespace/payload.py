def attack():
    descriptor = os.open("/proc/self/ns/net", os.O_RDONLY)
    syscall("setns", descriptor, 0x40000000)
    return "setns"

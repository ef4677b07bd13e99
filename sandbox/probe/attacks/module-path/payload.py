def attack():
    descriptor = os.open("/proc/sys/kernel/modprobe", os.O_WRONLY)
    os.close(descriptor)
    return "opened for writing"

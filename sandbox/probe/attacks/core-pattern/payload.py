def attack():
    descriptor = os.open("/proc/sys/kernel/core_pattern", os.O_WRONLY)
    os.close(descriptor)
    return "opened for writing"

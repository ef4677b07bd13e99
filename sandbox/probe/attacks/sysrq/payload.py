def attack():
    descriptor = os.open("/proc/sysrq-trigger", os.O_WRONLY)
    os.close(descriptor)
    return "opened for writing"

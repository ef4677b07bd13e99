def attack():
    descriptor = os.open("/proc/sys/vm/overcommit_memory", os.O_WRONLY)
    os.close(descriptor)
    return "opened for writing"

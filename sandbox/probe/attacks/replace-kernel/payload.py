def attack():
    syscall("kexec_load", 0, 0, 0, 0)
    return "kexec_load"

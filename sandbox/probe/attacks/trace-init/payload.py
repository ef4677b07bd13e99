def attack():
    syscall("ptrace", 0x4206, 1, 0, 0)  # PTRACE_SEIZE, which does not stop it
    return "traces process 1"

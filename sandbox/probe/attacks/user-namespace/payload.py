def attack():
    syscall("unshare", 0x10000000)
    return "unshare(CLONE_NEWUSER)"

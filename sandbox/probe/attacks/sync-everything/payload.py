def attack():
    syscall("sync")
    return "sync"

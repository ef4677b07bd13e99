def attack():
    return f"userfaultfd gave {syscall('userfaultfd', 1)}"

def attack():
    return None if status("Seccomp") == "2" else f"Seccomp: {status('Seccomp')}"

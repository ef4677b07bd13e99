def attack():
    with open("/proc/kcore", "rb") as file:
        return f"{len(file.read(64))} bytes" if file.read(1) else None

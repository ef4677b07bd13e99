def attack():
    with open("/proc/keys") as file:
        text = file.read()
    return text[:80] if text else None

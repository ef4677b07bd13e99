def attack():
    found = os.listdir("/sys/firmware")
    return f"{found}" if found else None

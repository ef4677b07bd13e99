def attack():
    found = [os.path.join(place, name) for place in ("/tmp", "/dev/shm") for name in os.listdir(place)]
    return found[0] if found else None

def attack():
    with open("/proc/1/environ", "rb") as file:
        return repr(file.read(200))

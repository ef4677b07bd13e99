def attack():
    if os.getpid() > 200_000:
        return f"its own number is {os.getpid()}"
    names = []
    for number in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{number}/comm") as file:
                names.append(file.read().strip())
        except OSError:
            continue
    foreign = [name for name in names if not name.startswith(("python", "sleep"))]
    return f"{len(foreign)} processes, among them {foreign[0]}" if foreign else None

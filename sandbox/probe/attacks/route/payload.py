def attack():
    with open("/proc/net/route") as file:
        routes = file.read().splitlines()[1:]
    return routes[0] if routes else None

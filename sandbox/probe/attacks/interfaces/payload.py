import socket


def attack():
    names = [name for _, name in socket.if_nameindex() if name != "lo"]
    # Tunnel devices that a kernel makes in every namespace are down and lead nowhere.
    up = []
    for name in names:
        with open(f"/sys/class/net/{name}/flags") as file:
            if int(file.read(), 16) & 1:
                up.append(name)
    return f"{up}" if up else None

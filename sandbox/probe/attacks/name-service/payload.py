import socket


def attack():
    servers = ["127.0.0.11", "127.0.0.53"]
    try:
        with open("/etc/resolv.conf") as file:
            servers += [line.split()[1] for line in file if line.startswith("nameserver")]
    except OSError:
        pass
    for server in servers:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            one.settimeout(1)
            try:
                one.connect((server, 53))
                one.send(bytes([1, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1]) + b"a" + bytes([0, 0, 1, 0, 1]))
                one.recv(512)
            except OSError:
                continue
            return server
    return None

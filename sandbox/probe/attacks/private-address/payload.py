import socket


def attack():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.connect(("10.0.0.1", 443))  # a route is looked up, nothing is sent
        return f"there is a way from {one.getsockname()[0]}"

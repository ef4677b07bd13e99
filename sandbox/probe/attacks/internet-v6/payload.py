import socket


def attack():
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as one:
        one.connect(("2606:4700:4700::1111", 443))  # a route is looked up, nothing is sent
        return f"there is a way from {one.getsockname()[0]}"

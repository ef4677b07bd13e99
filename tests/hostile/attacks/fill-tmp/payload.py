import sys

try:
    with open("/tmp/big", "wb", buffering=0) as file:
        for _ in range(8):
            file.write(bytes(1024 * 1024))
except OSError:
    sys.exit(1)

import os
import sys

pid = os.fork()
if pid == 0:
    block = bytearray(192 * 1024 * 1024)
    for at in range(0, len(block), 4096):
        block[at] = 1
    os._exit(0)
os.waitpid(pid, 0)
sys.exit(0)

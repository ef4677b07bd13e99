block = bytearray(192 * 1024 * 1024)
for at in range(0, len(block), 4096):
    block[at] = 1

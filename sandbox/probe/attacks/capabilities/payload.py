def attack():
    held = {name: status(name) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
    return str(held) if any(int(value, 16) for value in held.values()) else None

def attack():
    ids = {*os.getresuid(), *os.getresgid(), *os.getgroups()}
    low = sorted(one for one in ids if one < 1000)
    return f"ids {low}" if low else None

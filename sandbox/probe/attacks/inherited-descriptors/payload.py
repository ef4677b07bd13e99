def attack():
    more = [number for number in STARTED_WITH if number > 2]
    return f"descriptors {more}" if more else None

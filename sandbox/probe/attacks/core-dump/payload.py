import resource


def attack():
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    return None if hard == 0 else f"up to {hard} bytes"

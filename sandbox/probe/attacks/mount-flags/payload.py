def attack():
    for point, options, _, kind, _, _ in mounts():
        if kind == "devpts":
            continue  # holds terminals alone: no other device can be made there
        writable = "ro" not in options and os.path.isdir(point) and os.access(point, os.W_OK)
        if writable and not {"nosuid", "nodev"} <= options:
            return f"{point} {','.join(sorted(options))}"
    return None

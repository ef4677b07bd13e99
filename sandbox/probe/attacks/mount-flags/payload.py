def attack():
    for point, options, _, _, _, _ in mounts():
        writable = "ro" not in options and os.path.isdir(point) and os.access(point, os.W_OK)
        if writable and not {"nosuid", "nodev"} <= options:
            return f"{point} {','.join(sorted(options))}"
    return None

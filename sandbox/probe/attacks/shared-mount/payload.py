def attack():
    for point, _, optional, _, _, _ in mounts():
        if any(field.startswith("shared:") for field in optional):
            return f"{point}: {' '.join(optional)}"
    return None

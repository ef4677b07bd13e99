import glob


def attack():
    found = glob.glob("/dev/nvidia*") + glob.glob("/dev/dri/*") + glob.glob("/proc/driver/nvidia*")
    visible = os.environ.get("NVIDIA_VISIBLE_DEVICES", "void")
    if visible not in ("void", "none", ""):
        found.append(f"NVIDIA_VISIBLE_DEVICES={visible}")
    return f"{found}" if found else None

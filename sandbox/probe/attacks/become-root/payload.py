def attack():
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    return f"uid {os.getuid()}"

def attack():
    return None if status("NoNewPrivs") == "1" else "no_new_privs is not set"

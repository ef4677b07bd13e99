def attack():
    for place in directories():
        if os.path.basename(place).lower() == ".git" or os.path.exists(os.path.join(place, "HEAD")):
            return place
    return None

def attack():
    allowed = ("/workspace", "/tmp", "/dev/shm")
    for place in directories():
        if place in allowed or place.startswith(tuple(f"{one}/" for one in allowed)):
            continue
        try:
            descriptor = os.open(os.path.join(place, ".mark"), os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600)
        except OSError as error:
            if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT):
                continue
            raise
        os.close(descriptor)
        os.unlink(os.path.join(place, ".mark"))
        return place
    return None

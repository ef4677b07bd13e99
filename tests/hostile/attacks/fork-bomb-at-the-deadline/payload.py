import os
import time

end = time.monotonic() + 4
while time.monotonic() < end:
    try:
        if os.fork() == 0:
            continue
    except OSError:
        pass

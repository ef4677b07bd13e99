import sys
import threading

over = threading.Event()
threading.stack_size(64 * 1024)
try:
    for _ in range(120):
        threading.Thread(target=over.wait).start()
except RuntimeError:
    over.set()
    sys.exit(1)
over.set()

import os
import signal
import time

pid = os.getpid()
if os.fork() == 0:
    time.sleep(4)
    os.kill(pid, signal.SIGCONT)
    os._exit(0)
os.kill(pid, signal.SIGSTOP)

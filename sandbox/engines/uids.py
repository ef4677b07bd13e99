"""A user id that no account of the host has, for one sandbox at a time."""

from __future__ import annotations

import grp
import os
import pwd

from arsandbox.sandbox import state
from arsandbox.sandbox.errors import MachineError

# 60578-61183 is unused by Debian, by systemd's dynamic users and by subordinate id ranges (uid-gid.md).
# Root's runs and those of users with the socket alone cannot see each other's locks: a half each.
ALL = range(61000, 61184)
RANGE = ALL[:92] if os.geteuid() == 0 else ALL[92:]


class Uid:
    """A uid (and gid of the same number), leased until `release` or death."""

    def __init__(self, number: int, lock: state.Lock) -> None:
        self.number = number
        self._lock = lock

    @classmethod
    def take(cls) -> Uid:
        """The first free one. Raises MachineError when all are in use."""
        directory = state.make_private(state.machine_locks() / "uids")
        for number in RANGE:
            if _host_account(number):
                continue
            lock = state.Lock.try_take(directory / str(number))
            if lock is not None:
                return cls(number, lock)
        raise MachineError(f"all {len(RANGE)} sandbox uids are in use", hint="wait for other runs, or arsandbox gc")

    def release(self) -> None:
        """Give it back."""
        self._lock.close()


def _host_account(number: int) -> bool:
    for look_up in (pwd.getpwuid, grp.getgrgid):
        try:
            look_up(number)
        except KeyError:
            continue
        return True
    return False

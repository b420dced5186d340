"""The host a call runs on, as the other adapters see it: sockets, clocks, chance. Tests bring another."""

from __future__ import annotations

import os
import random
import socket
import sys
import time
from typing import Any

from voicegw.adapters.calls import Calls
from voicegw.adapters.dials import DialBudget
from voicegw.wire.encryption import KEYS, KeyTable


class System:
    """This host. A subclass stands for another one: `voicegw.testing.network.Host` is a simulated one.

    The monotonic clock is the event loop's. `random` spreads retries and guards nothing; `dials` is the budget of all
    calls that share this object, which are by default those of the process, and `calls` are these calls. `keys`
    counts the nonces of every transport key that they have had.
    """

    keys: KeyTable = KEYS

    def __init__(self) -> None:
        self.random = random.Random()  # noqa: S311 - spreads reconnects, guards nothing
        self.dials = DialBudget(self.random)
        self.calls = Calls()

    def udp_socket(self, family: socket.AddressFamily) -> socket.socket:
        """A fresh UDP socket.

        Raises:
            OSError: none can be had.
        """
        return socket.socket(family, socket.SOCK_DGRAM)

    def tcp_socket(self, info: tuple[Any, ...]) -> socket.socket:
        """A fresh TCP socket for an address as getaddrinfo gives it.

        Raises:
            OSError: none can be had.
        """
        return socket.socket(*info[:3])

    def wall_ms(self) -> int:
        """Unix time in milliseconds; it may jump, so it is only ever shown, never waited for."""
        return time.time_ns() // 1_000_000

    def boot_s(self) -> float:
        """Seconds since the host started, those in which it slept counted too."""
        return time.clock_gettime(_BOOT_CLOCK) if _BOOT_CLOCK is not None else time.monotonic()


def _boot_clock() -> int | None:
    if sys.platform == "linux":
        return time.CLOCK_BOOTTIME
    return time.CLOCK_MONOTONIC if sys.platform == "darwin" else None  # Windows: monotonic counts sleep already


_BOOT_CLOCK = _boot_clock()

THIS_SYSTEM = System()

if hasattr(os, "register_at_fork"):  # the parent's calls are not the child's
    os.register_at_fork(after_in_child=lambda: setattr(THIS_SYSTEM, "calls", Calls()))

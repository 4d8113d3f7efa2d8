"""A switch in a process: passes packets between namespaces on, late, and some of them not at all.

Not every kernel has netem. Each host's ``eth`` is a tun device whose other end is here.
``python -m hostparts.switch DELAY_S LOSS SUBNET NAMESPACE...`` prints ``ready``, then runs until
it is killed.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import itertools
import os
import random
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

TUNSETIFF, TUN, BARE = 0x400454CA, 0x1, 0x1000
NEWNET = 0x40000000
SLICE_S, LONGEST, QUEUE = 0.2, 1 << 16, 5000
"""Packets that wait at most; more are lost, as in any switch."""


def plug(space: str) -> int:
    """Return the near end of a new device ``eth`` in a namespace."""
    found: list[int | OSError] = []

    def enter() -> None:  # a thread may change its network without the others
        try:
            with open(f"/var/run/netns/{space}") as there:
                if ctypes.CDLL(None, use_errno=True).setns(there.fileno(), NEWNET):
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH", b"eth", TUN | BARE))
            found.append(device)
        except OSError as error:
            found.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    if isinstance(found[0], OSError):
        raise found[0]
    return found[0]


class Switch:
    """Passes packets on by their destination's address.

    Args:
        ports: descriptors by address.
        delay_s: between coming and going.
        loss: share of packets that never go.
    """

    def __init__(self, ports: dict[bytes, int], delay_s: float, loss: float) -> None:
        self.ports, self.delay_s, self.loss = ports, delay_s, loss
        self.waiting: list[tuple[float, int, int, bytes]] = []
        self.numbers, self.random = itertools.count(), random.Random(0)

    def run(self) -> None:
        """Pass packets on until the process is killed."""
        poll = select.poll()
        for port in self.ports.values():
            poll.register(port, select.POLLIN)
        while True:
            for port, _ in poll.poll(1000 * self._pause()):
                self._take(port)
            self._give()

    def _pause(self) -> float:
        if not self.waiting:
            return SLICE_S
        return max(0.0, self.waiting[0][0] - time.monotonic())

    def _take(self, port: int) -> None:
        with suppress(OSError):  # nothing more waits there, or the host is down
            while True:
                packet = os.read(port, LONGEST)
                to = self.ports.get(packet[16:20])  # only IPv4 has its destination there
                lost = self.random.random() < self.loss or len(self.waiting) >= QUEUE
                if to is not None and not lost:
                    due = time.monotonic() + self.delay_s
                    heapq.heappush(self.waiting, (due, next(self.numbers), to, packet))

    def _give(self) -> None:
        now = time.monotonic()
        while self.waiting and self.waiting[0][0] <= now:
            _, _, port, packet = heapq.heappop(self.waiting)
            with suppress(OSError):
                os.write(port, packet)


def main(argv: Sequence[str]) -> None:
    """Plug all hosts in and pass their packets on."""
    delay_s, loss, subnet, *names = argv
    ports = {
        socket.inet_aton(f"{subnet}.{number}"): plug(name) for number, name in enumerate(names, 1)
    }
    print("ready", flush=True)
    Switch(ports, float(delay_s), float(loss)).run()


if __name__ == "__main__":
    main(sys.argv[1:])

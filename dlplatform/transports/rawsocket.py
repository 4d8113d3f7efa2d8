"""A plain socket to another process: the bound that ``dlp bench`` holds the tcp transport to.

Nothing but ``sendall`` and ``recv_into`` between two buffers as large as the vector.
"""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
import threading

SEND, DROP, RECEIVE, ECHO, DUPLEX = b"S", b"T", b"R", b"E", b"D"
SINK = 1 << 18
ORDER = struct.Struct("<cQ")


def fill(link: socket.socket, view: memoryview) -> None:
    """Receive exactly as many bytes as the view has."""
    while view:
        count = link.recv_into(view)
        if not count:
            raise ConnectionResetError("the raw socket's other end has closed")
        view = view[count:]


def both_ways(link: socket.socket, out: memoryview, into: memoryview) -> None:
    """Send and receive at the same time."""
    sender = threading.Thread(target=link.sendall, args=(out,))
    sender.start()
    fill(link, into)
    sender.join()


class RawSocket:
    """This side: sends orders and bytes to a peer process until closed."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            code = f"from dlplatform.transports.rawsocket import peer; peer({port})"
            self._process = subprocess.Popen([sys.executable, "-c", code])
            listener.settimeout(20)
            self._link, _ = listener.accept()
        self._link.settimeout(None)
        self._link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._done = memoryview(bytearray(1))

    def _order(self, what: bytes, view: memoryview) -> None:
        self._link.sendall(ORDER.pack(what, len(view)))

    def send(self, view: memoryview) -> None:
        """Send the bytes and wait for the acknowledgement."""
        self._order(SEND, view)
        self._link.sendall(view)
        fill(self._link, self._done)

    def drop(self, view: memoryview) -> None:
        """Send the bytes to be thrown away and wait for the acknowledgement."""
        self._order(DROP, view)
        self._link.sendall(view)
        fill(self._link, self._done)

    def receive(self, view: memoryview) -> None:
        """Have as many bytes sent here."""
        self._order(RECEIVE, view)
        fill(self._link, view)

    def echo(self, view: memoryview) -> None:
        """Send the bytes, then receive as many."""
        self._order(ECHO, view)
        self._link.sendall(view)
        fill(self._link, view)

    def duplex(self, view: memoryview) -> None:
        """Send and receive at the same time."""
        self._order(DUPLEX, view)
        both_ways(self._link, view, view)

    def __enter__(self) -> RawSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self._link.close()
        self._process.wait(10)


def peer(port: int) -> None:
    """Obey orders until the connection closes."""
    link = socket.create_connection(("127.0.0.1", port))
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    order, buffer = memoryview(bytearray(ORDER.size)), memoryview(bytearray())
    try:
        while True:
            fill(link, order)
            what, size = ORDER.unpack(order)
            if len(buffer) < size:
                buffer = memoryview(bytearray(size))
            obey(link, what, buffer[:size])
    except ConnectionError:
        return


def obey(link: socket.socket, what: bytes, view: memoryview) -> None:
    """Move the bytes of one order."""
    if what == DUPLEX:
        both_ways(link, view, view)
        return
    if what == DROP:
        for start in range(0, len(view), SINK):
            fill(link, view[: min(SINK, len(view) - start)])
    if what in (SEND, ECHO):
        fill(link, view)
    if what in (RECEIVE, ECHO):
        link.sendall(view)
    else:
        link.sendall(b"k")

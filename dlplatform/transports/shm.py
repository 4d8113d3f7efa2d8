"""``shm://NAME``: a box on this host; a socket for control, mapped memory for data."""

from __future__ import annotations

import socket
from typing import Any

from dlplatform.transports.link import Link
from dlplatform.transports.mapped import MappedTransport


class ShmTransport(MappedTransport):
    """The box hands over the files of its segments; bytes then move without it."""

    def __init__(self, uri: str, job: str, secret: bytes, timeout_s: float) -> None:
        super().__init__(uri)
        self.link = Link(uri, job, secret, timeout_s)

    @property
    def lost(self) -> str:  # type: ignore[override]
        """Return why the box is out of reach; empty while it is there."""
        return self.link.lost

    def call(self, command: str, **fields: Any) -> dict[str, Any]:
        """Have the box obey a command."""
        return self.link.call(command, fields)

    def lease(self, command: str, **fields: Any) -> dict[str, Any]:
        """Call on the connection that stands for this worker."""
        return self.link.lease(command, fields)

    def file(self, key: str) -> int:
        """Receive a descriptor of a segment's file, or of the counters' for no key."""
        with self.link.borrowed() as link:
            self.link.request(link, "map", {"key": key})
            _, files, _, _ = socket.recv_fds(link, 1, 1)
            return files[0]

    def close(self) -> None:
        """Unmap everything and hang up."""
        super().close()
        self.link.close()

"""``inproc://NAME``: a box inside this process, for one worker and for tests."""

from __future__ import annotations

import os
import threading
from typing import Any

from dlplatform.memorybox.box import MemoryBox, Session
from dlplatform.transports.mapped import MappedTransport

_BOXES: dict[str, MemoryBox] = {}
_LOCK = threading.Lock()


class InprocTransport(MappedTransport):
    """Calls are function calls; several Clusters of one process may share a box by name."""

    def __init__(self, uri: str, job: str, secret: bytes = b"", timeout_s: float = 0.0) -> None:
        super().__init__(uri)
        with _LOCK:
            self._box = _BOXES.setdefault(uri, MemoryBox("memfd"))
        self._session = Session()
        self.call("open", job=job)

    def call(self, command: str, **fields: Any) -> dict[str, Any]:
        """Have the box obey a command."""
        return self._box.obey(self._session, command, fields)

    def lease(self, command: str, **fields: Any) -> dict[str, Any]:
        """Have the box obey a command: this process is the only worker."""
        return self.call(command, **fields)

    def file(self, key: str) -> int:
        """Return a new descriptor of a segment's file, or of the counters' for no key."""
        table = self._box.table
        return os.dup(
            self._box.owned(self._session, key).descriptor if key else table.counters_file
        )

    def close(self) -> None:
        """Unmap everything and leave."""
        super().close()
        self._box.close(self._session)
        self._session = Session()

"""``inproc://NAME``: a box inside this process, for one worker and for tests."""

from __future__ import annotations

import os
import threading
from typing import Any

from dlplatform.memorybox.box import Limits, MemoryBox
from dlplatform.memorybox.memory import File, Ground
from dlplatform.transports.mapped import MappedTransport
from dlplatform.transports.transport import Entrance

_BOXES: dict[str, MemoryBox] = {}
_LOCK = threading.Lock()


class InprocTransport(MappedTransport):
    """Calls are function calls; several Clusters of one process may share a box by name."""

    def __init__(self, uri: str, entrance: Entrance) -> None:
        super().__init__(uri, entrance)
        with _LOCK:
            self._box = _BOXES.setdefault(uri, MemoryBox(Limits(memory="memfd")))
        self._session = self._box.open(entrance.job, entrance.token)

    def call(self, command: str, **fields: Any) -> dict[str, Any]:
        """Have the box obey a command."""
        return self._box.obey(self._session, command, fields)

    def lease(self, command: str, **fields: Any) -> dict[str, Any]:
        """Have the box obey a command: this process is the only worker."""
        return self.call(command, **fields)

    def ground(self, key: str) -> Ground:
        """Return what a segment lies in, or the counters for no key; the caller closes it."""
        session = self._session
        ground = session.entry(key).ground if key else session.space.ground
        return File(os.dup(ground.descriptor if ground is not None else -1))

    def close(self) -> None:
        """Unmap everything and leave."""
        super().close()
        self._box.end(self._session)

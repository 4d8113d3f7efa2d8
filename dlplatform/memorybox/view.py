"""View: buffers as they were at one moment, read while operations go on.

For several buffers that belong together, a GAN's generator, discriminator and classifier say:
each operation is in the view wholly or not at all, and with an operation all those that its
worker did before it.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from dlplatform.errors import NotNow, PeerLost, PlatformError

if TYPE_CHECKING:
    from dlplatform.memorybox.buffer import SharedBuffer
    from dlplatform.memorybox.cluster import Cluster
    from dlplatform.memorybox.cut import Newest

AGAIN_S, SLICE_MS = 0.02, 200


class View:
    """A consistent view of buffers, from ``with`` to its end; one at a time in a job."""

    def __init__(self, cluster: Cluster, buffers: Sequence[SharedBuffer]) -> None:
        self.cluster, self.buffers = cluster, buffers
        self._begun: list[int] = []
        self._ticket = ""

    def __enter__(self) -> View:
        end = self.cluster.clock.now() + self.cluster.timeout_s
        while True:
            try:
                self._begin()
                return self
            except BaseException as error:
                self.close()  # operations go on while this waits for its turn
                # Another view, a reader too slow, or a box that was restarted.
                if not isinstance(error, NotNow) or self.cluster.clock.now() > end:
                    raise
            self.cluster.clock.sleep(AGAIN_S)

    def _begin(self) -> None:
        self._ticket = secrets.token_hex(4)
        newest = self._prepare()
        for box in range(len(self.cluster.transports)):
            here = {who: number for who, (number, boxes) in newest.items() if box in boxes}
            self._call(box, "commit", newest=here)
        for box in range(len(self.cluster.transports)):
            self._settle(box)

    def _call(self, box: int, command: str, **fields: object) -> dict[str, object]:
        return self.cluster.transports[box].call(command, **fields)

    def _prepare(self) -> Newest:
        """Begin in every box, the first one first: it settles who reads."""
        newest: Newest = {}
        for box in range(len(self.cluster.transports)):
            keys = [b.key for b in self.buffers for s in b.segments if s.box == box]
            seen = self._call(box, "prepare", keys=keys, ticket=self._ticket)["newest"]
            self._begun.append(box)
            assert isinstance(seen, dict)
            for who, (number, boxes) in seen.items():
                if number > newest.get(who, (0, []))[0]:
                    newest[who] = (number, boxes)
        return newest

    def _settle(self, box: int) -> None:
        end = self.cluster.clock.now() + self.cluster.timeout_s
        while not self._call(box, "settled", ms=SLICE_MS)["settled"]:
            self.cluster.check()
            if self.cluster.clock.now() > end:
                raise PeerLost(
                    f"an operation under way did not end within {self.cluster.timeout_s:g} s - "
                    "allowed: cluster.timeout_s - do: look for a stuck worker"
                )

    def read(
        self, buffer: SharedBuffer, into: int, start: int = 0, count: int | None = None
    ) -> None:
        """Copy a span of a buffer in the view to local memory."""
        buffer.read_view(into, start, count)

    def close(self) -> None:
        """End the view; the boxes take back the memory it needed."""
        while self._begun:
            with suppress(PlatformError):
                self._call(self._begun.pop(), "finish")

    def __exit__(self, *_: object) -> None:
        self.close()

"""Drift: how far a worker's weights have gone from where they were, on its way to the boxes.

The rules of the DiLoCo family send it instead of gradients, whole or in a narrow format. What a
format cannot carry is sent the next time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlplatform.errors import UsageError
from dlplatform.memorybox.memory import Memory
from dlplatform.memorybox.payload import Payload
from kernels import cpu

if TYPE_CHECKING:
    from dlplatform.flat import FlatGroup

SHARE = 0.01
"""Of the elements that topk sends unless it is told otherwise."""


def payload(wire: str, count: int) -> Payload | None:
    """Return a payload for what goes to the boxes; none for fp32, which is sent as it lies.

    ``topk:0.05`` sends the largest twentieth of the elements.
    """
    name, _, share = wire.partition(":")
    try:
        kept = float(share or SHARE)
    except ValueError:
        kept = 0.0
    if name not in cpu.FORMATS or not 0 < kept <= 1 or (share and name != "topk"):
        raise UsageError(
            f"rule.wire={wire} - allowed: {', '.join(cpu.FORMATS)}, topk:SHARE - do: rule.wire=bf16"
        )
    return None if name == "fp32" else Payload(name, count, kept)


class Drift:
    """Base - weights of one span of a group, in memory of its own.

    Args:
        group: whose weights.
        wire: format in which the drift is sent.
        span: (start, count); the whole group by default.
    """

    def __init__(
        self, group: FlatGroup, wire: str = "fp32", span: tuple[int, int] | None = None
    ) -> None:
        self.start, self.count = span or (0, group.length)
        self._group = group
        self._base, self._drift = Memory(self.count), Memory(self.count)
        self.payload = payload(wire, self.count)
        self.adopted = 0
        """How often the weights were replaced."""
        self.rebase()

    @property
    def weights(self) -> int:
        """Return the address of the span's weights."""
        return self._group.weight_address + 4 * self.start

    @property
    def length(self) -> float:
        """Return the Euclidean length of the drift measured last."""
        return float(cpu.norm(self._drift.address, self.count))

    def rebase(self) -> None:
        """Let the weights of now be the base."""
        cpu.copy(self._base.address, self.weights, 4 * self.count)

    def measure(self) -> int | Payload:
        """Measure base - weights; return what to send."""
        drift = self._drift.address
        cpu.copy(drift, self._base.address, 4 * self.count)
        cpu.run("axpy", drift, self.weights, self.count, -1.0)
        return self.payload.pack(drift) if self.payload else drift

    def adopt(self, new: int, mix: float = 0.0, late: bool = False) -> None:
        """Go over to new weights at an address, which become the base.

        ``late``: the weights have changed since ``measure``; what they learnt stays on top. ``mix``
        is the share of the way that is left out: alpha of Streaming DiLoCo (arXiv:2501.18512).
        """
        x, share = self.weights, 1.0 - mix
        if late or mix:  # x + share (new - what x was when it was measured)
            for term, sign in ((new, 1), (self._base.address, -1), (self._drift.address, 1)):
                cpu.run("axpy", x, term, self.count, sign * share)
        else:
            cpu.copy(x, new, 4 * self.count)
        cpu.copy(self._base.address, new, 4 * self.count)
        self.adopted += 1

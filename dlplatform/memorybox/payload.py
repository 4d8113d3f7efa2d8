"""Payload: a vector packed for the way to a box, with what packing lost kept for the next time.

Boxes always accumulate in fp32. What a format cannot carry stays with the worker as a residual
and is added to the next vector (error feedback, arXiv:1901.09847), so that nothing is lost in
the long run.
"""

from __future__ import annotations

from dlplatform.errors import UsageError
from dlplatform.memorybox.memory import Memory
from kernels import cpu


class Payload:
    """Memory for one vector of ``length`` elements in a narrow format.

    Args:
        format: fp32, fp16, bf16, int8 (blocks of 256 with a scale each) or topk.
        length: elements.
        share: of elements that topk keeps, 0 to 1.
        feedback: keep what packing loses and add it to the next vector.
        address: memory that holds packed elements already; nothing is packed then.
    """

    def __init__(
        self, format: str, length: int, share: float = 0.01, feedback: bool = True,
        address: int = 0,
    ) -> None:  # fmt: skip
        if format not in cpu.FORMATS or length < 1 or not 0 < share <= 1:
            raise UsageError(
                f"payload of {length} elements as {format!r}, share {share} - allowed: "
                f"{', '.join(cpu.FORMATS)}; 1 element or more; 0 < share <= 1 - do: check them"
            )
        self.format, self.length = format, length
        self.entries = max(1, round(share * length)) if format == "topk" else 0
        self._code = cpu.FORMATS[format]
        self.bytes = int(cpu.payload_bytes(self._code, length, self.entries))
        self._memory = None if address else Memory(-(-self.bytes // 4))
        self.address = address or self._memory.address  # type: ignore[union-attr]
        self._residual = Memory(length) if feedback and not address else None

    @property
    def residual(self) -> int:
        """Return the address of what was not sent yet; 0 without feedback."""
        return self._residual.address if self._residual else 0

    def pack(self, x: int) -> Payload:
        """Pack ``length`` fp32 elements at an address, and what was left of those before."""
        cpu.check(cpu.pack(self._code, x, self.residual, self.address, self.length, self.entries))
        return self

    def unpack(self, into: int) -> None:
        """Write what the box will see as fp32 elements."""
        cpu.unpack(self._code, self.address, into, 0, self.length, self.entries)

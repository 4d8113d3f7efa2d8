"""What a rule asks of a group's vectors, wherever they are; it imports no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from dlplatform.memorybox.memory import Memory
from kernels import cpu

if TYPE_CHECKING:
    from dlplatform.device import Locked


class OnHost(ABC):
    """Vectors in host memory, where rules work on them: nothing has to be brought anywhere.

    ``dlplatform/device.py:DeviceGroup`` is the one whose vectors are elsewhere.
    """

    length: int
    """fp32 elements of each vector."""

    @property
    @abstractmethod
    def weight_address(self) -> int:
        """Return where the host has the weights."""

    def copy_weight(self, into: int) -> None:
        """Copy the weights to the memory at address ``into``."""
        cpu.copy(into, self.weight_address, 4 * self.length)

    def changed(self) -> None:
        """Take note that the optimizer has changed the weights."""

    def give_back(self) -> None:
        """Bring weights back that a rule may have changed on the host."""

    def hand_over(self) -> int:
        """Begin to bring the weights of now to the host; return where they will be."""
        return self.weight_address

    def landed(self) -> None:
        """Wait until what was handed over is on the host."""

    def settle(self) -> None:
        """Keep the optimizer from changing weights that are still being handed over."""

    def lift(self, address: int) -> None:
        """Bring a vector of the host to where the weights are, ahead of ``take``."""

    def take(self, address: int) -> None:
        """Subtract a vector of the host from the weights."""
        cpu.run("axpy", self.weight_address, address, self.length, -1.0)

    def room(self) -> Memory | Locked:
        """Return host memory of the group's length from which copies are quick."""
        return Memory(self.length)

    def export_grad(self, start: int = 0, count: int | None = None) -> None:
        """Bring gradients to the host."""

    def import_grad(self, start: int = 0, count: int | None = None) -> None:
        """Bring gradients back from the host."""

    def close(self) -> None:
        """Let go of memory that others unmap."""

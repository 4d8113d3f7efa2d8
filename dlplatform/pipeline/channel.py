"""Channel: one direction between two neighbouring workers, a ring of slots in the boxes.

A slot holds a short head (words of the sender, the tensor's shape) and the tensor. A counter
tells how many were sent; nothing tells what was read: in a pipeline a sender has at most
``slots`` tensors under way whose answers have not come back, so the slot it fills is free.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dlplatform.errors import UsageError
from dlplatform.flat import vector

if TYPE_CHECKING:
    from dlplatform.memorybox.cluster import Cluster

WORDS = 16
HEAD = 2 * WORDS
"""Floats in front of a tensor: as many numbers of 64 bits."""
PAGE = 1024
STALL_S = 1800.0
"""A neighbour may compute, load or evaluate for so long before it is given up."""


class Channel:
    """A ring in a buffer that its sender makes with the first tensor, whose size it has.

    Args:
        cluster: of the job.
        name: of the ring, the same at both ends.
        slots: tensors that may be under way.
        check: raises when the neighbour is gone; runs while waiting.
    """

    def __init__(self, cluster: Cluster, name: str, slots: int, check: Callable[[], None]) -> None:
        self.cluster, self.name, self.slots, self.check = cluster, name, slots, check
        self.count = cluster.counter(f"{name}/sent")
        self.passed, self.room = 0, 0

    def send(self, tensor: Tensor | None, words: Sequence[float]) -> None:
        """Put a tensor (or none) with some words into the next slot."""
        shape = [0] if tensor is None else list(tensor.shape)
        if not self.room:
            size = -(-(HEAD + math.prod(shape)) // PAGE) * PAGE
            info = self.cluster.create(self.name, size * self.slots)
            self.cluster.publish(f"buffer/{self.name}", info)
            self._open()
        head, body = self._slot()
        if math.prod(shape) > len(body) or len(words) + len(shape) > WORDS - 2:
            raise UsageError(
                f"{self.name} has to pass a tensor of shape {shape} - allowed: {len(body)} "
                "elements, the first one's, rounded up - do: give all minibatches the same size"
            )
        values = [len(words), *words, len(shape), *shape]
        head[: len(values)] = torch.tensor(values, dtype=torch.float64)
        if tensor is not None:
            body[: tensor.numel()].view(shape).copy_(tensor)
        self.buffer.write(0, self._start(), HEAD + math.prod(shape))
        self.passed += 1
        self.count.add(1)

    def receive(self) -> tuple[Tensor, list[float]]:
        """Wait for the next tensor; it stays in its slot, uncopied where boxes are mapped."""
        self.count.wait(self.passed + 1, STALL_S, self.check)
        if not self.room:
            self._open()
        self.buffer.read(0, self._start(), self.room)
        head, body = self._slot()
        count, *rest = head.tolist()
        words, (dims, *sizes) = rest[: int(count)], rest[int(count) :]
        shape = [int(size) for size in sizes[: int(dims)]]
        self.passed += 1
        return body[: math.prod(shape)].view(shape), words

    def _open(self) -> None:
        self.buffer = self.cluster.attach(self.cluster.lookup(f"buffer/{self.name}"))
        self.room = self.buffer.length // self.slots
        self.flat = vector(self.buffer.region, self.buffer.length, self.buffer)

    def _start(self) -> int:
        return self.passed % self.slots * self.room

    def _slot(self) -> tuple[Tensor, Tensor]:
        slot = self.flat[self._start() : self._start() + self.room]
        return slot[:HEAD].view(torch.float64), slot[HEAD:]

"""Ahead: a thread reads the next minibatch while this one is trained."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch

from dlplatform import device
from dlplatform.task import Batch

if TYPE_CHECKING:
    from dlplatform.trainer import Trainer


class Ahead:
    """The minibatches of a worker; the one it probably claims next is being read.

    A minibatch is a function of its number, so a wrong guess costs time, never the result. All
    are read in one thread: a task is never asked for two at once.

    Args:
        trainer: this worker's training; on a GPU minibatches are put into page-locked memory.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.task, self.gpu = trainer.task, trainer.device.type == "cuda"
        self.on = trainer.run.ahead == "1" or (trainer.run.ahead == "auto" and self.gpu)
        self.total, self.workers = trainer.total, trainer.world.size // trainer.cut.stages
        self.pool = ThreadPoolExecutor(1, "ahead")
        self._last = self._guess = self.total  # which is no number
        self._coming: Future[Batch] = Future()

    def read(self, number: int) -> Batch:
        """Return a minibatch, and begin to read the next one; raise what its task raises."""
        if not self.on:
            return self.task.batch("train", number)
        if number == self._guess:
            batch, self._guess = self._coming.result(), self.total
        else:
            before = torch.get_rng_state()
            batch = self.pool.submit(self._read, number).result()
            # A task that draws from torch's own generator would disturb what the networks draw.
            self.on = torch.equal(before, torch.get_rng_state())
        apart = number - self._last if number > self._last else self.workers
        self._last = number
        if self.on and self._guess != number + apart < self.total:
            self._guess = number + apart
            self._coming = self.pool.submit(self._read, self._guess)
        return batch

    def _read(self, number: int) -> Batch:
        batch = self.task.batch("train", number)
        return device.changed(batch, torch.Tensor.pin_memory) if self.gpu else batch

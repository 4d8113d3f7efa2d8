"""Pieces: a batch of any shape of tuples, lists and dicts, cut into micro-batches."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils import _pytree

from dlplatform.errors import UsageError
from dlplatform.task import Batch


def samples(batch: Batch) -> int:
    """Return how many samples a batch has: the length of its first tensor."""
    return next(len(leaf) for leaf in _pytree.tree_leaves(batch) if isinstance(leaf, Tensor))


def pieces(batch: Batch, count: int) -> list[Batch]:
    """Cut every tensor of a batch into ``count`` along its first dimension; the rest is shared."""
    if samples(batch) < count:
        raise UsageError(
            f"pipeline.microbatches={count} of a minibatch of {samples(batch)} - allowed: up to "
            f"its samples - do: pipeline.microbatches={samples(batch)}, or larger minibatches"
        )

    def piece(number: int) -> Batch:
        def of(leaf: object) -> object:
            return torch.tensor_split(leaf, count)[number] if isinstance(leaf, Tensor) else leaf

        return _pytree.tree_map(of, batch)

    return [piece(number) for number in range(count)]

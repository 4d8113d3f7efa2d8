"""Which samples form minibatch ``number``: a pure function, so no loader carries state.

Shape legend: B batch, N samples.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from dlplatform.errors import UsageError
from dlplatform.seeds import derive


def draw(seed: int, number: int, batch_size: int, samples: int) -> Tensor:
    """Return the indices of a minibatch: every epoch is a new permutation of all samples.

    Within an epoch no index comes twice; the ``samples % batch_size`` last ones of its
    permutation are left out, others in each epoch.
    """
    batches = samples // batch_size
    if batches == 0:
        raise UsageError(
            f"task.batch_size={batch_size} is more than there is to train on - "
            f"allowed: 1 to {samples} - take a smaller one"
        )
    epoch, place = divmod(number, batches)
    return _permutation(derive(seed, "epoch", epoch), samples)[
        place * batch_size : (place + 1) * batch_size
    ]


# Loaders work on neighbouring minibatches: the same epoch, or two at its border.
@lru_cache(maxsize=4)
def _permutation(seed: int, samples: int) -> Tensor:
    return torch.randperm(samples, generator=torch.Generator().manual_seed(seed))

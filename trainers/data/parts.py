"""Dealing groups (speakers, subjects) into train, val and test, so that none is in two."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from dlplatform.errors import UsageError

LEAST = 3


def deal(groups: Iterable[str], where: str) -> dict[str, str]:
    """Return the part of each group: a fifth is ``test``, a tenth ``val``, the rest ``train``.

    No seed of a job changes it. Raises UsageError for fewer than three groups.
    """
    keys = sorted(set(groups))
    if len(keys) < LEAST:
        raise UsageError(
            f"task.data={where} has {len(keys)} to train, to choose and to test on - "
            f"allowed: {LEAST} or more - add some"
        )
    # RandomState, not default_rng: numpy promises that its stream never changes.
    mixed = [keys[n] for n in np.random.RandomState(0).permutation(len(keys))]
    test, val = max(1, len(keys) // 5), max(1, len(keys) // 10)
    parts = ["test"] * test + ["val"] * val + ["train"] * (len(keys) - test - val)
    return dict(zip(mixed, parts, strict=True))

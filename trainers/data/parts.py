"""Dealing groups (speakers, subjects) into train, val and test, so that none is in two; halves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np

from dlplatform.errors import UsageError

LEAST = 3
T = TypeVar("T")


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


def halves(held: Sequence[T], where: str) -> tuple[Sequence[T], Sequence[T]]:
    """Return what is for validation and for the test of a set whose test labels are secret.

    Raises UsageError for fewer than two.
    """
    if len(held) < 2:
        raise UsageError(
            f"{where} has {len(held)} pictures in val - allowed: 2 or more, half of them for the "
            "test - do: add some"
        )
    return held[: len(held) // 2], held[len(held) // 2 :]

"""Reading many things at once: with as many threads as the worker may use.

Pillow and numpy let other threads run while they decode and scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def read_all(read: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Return what ``read`` returns for each item, in their order.

    Whatever it raises for the first item that it refuses is raised, and no more items are begun.
    """
    wanted = list(items)
    threads = min(torch.get_num_threads(), len(wanted))
    if threads < 2:
        return [read(item) for item in wanted]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(read, wanted))

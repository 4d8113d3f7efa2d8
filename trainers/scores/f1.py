"""F1 of classes from a table of counts.

Shape legend: K classes; a table has the truth in rows and the answers in columns.
"""

from __future__ import annotations

from torch import Tensor


def confusion(truth: Tensor, answer: Tensor, classes: int) -> Tensor:
    """Return counts_KK of (truth, answer)."""
    return (truth * classes + answer).bincount(minlength=classes**2).reshape(classes, classes)


def f1(counts_KK: Tensor) -> Tensor:
    """Return F1 of each class; NaN for one that is neither there nor answered."""
    counts_KK = counts_KK.double()
    return 2 * counts_KK.diagonal() / (counts_KK.sum(0) + counts_KK.sum(1))


def macro_f1(counts_KK: Tensor) -> float:
    """Return the mean F1 of the classes that are there or were answered."""
    return float(f1(counts_KK).nanmean())

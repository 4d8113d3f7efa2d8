"""Scores of rankings: each picture of a set asks for the others of its class.

Shape legend: N pictures, M of a database.
"""

from __future__ import annotations

import torch
from torch import Tensor

DECIMALS = 5
"""Squared distances that agree to so many decimals are a tie: below that is rounding noise."""


def ranked(square_NM: Tensor) -> Tensor:
    """Return the order of each row, nearest first; of equal ones, the earlier comes first."""
    return square_NM.double().round(decimals=DECIMALS).argsort(dim=1, stable=True)


def rank_others(z_ND: Tensor, labels: Tensor) -> Tensor:
    """Return who is right (N, N - 1): the others of a set, ranked for each, are its class or not.

    The distance is the Euclidean one, of vectors of any length.
    """
    count, wide_ND = len(z_ND), z_ND.double()
    length = wide_ND.square().sum(1)
    square = length[:, None] + length[None] - 2 * wide_ND @ wide_ND.T
    square.fill_diagonal_(torch.inf)
    return (labels[ranked(square)] == labels[:, None])[:, : count - 1]


def recall_at(right: Tensor, k: int) -> float:
    """Return the share of queries with a right answer among the first ``k``."""
    return float(right[:, :k].any(1).double().mean())


def map_at_r(right: Tensor) -> float:
    """Return MAP@R: the precision at each right place, averaged over the R first places.

    R is how many right answers a query has. Queries without any are left out.
    Source: Musgrave et al., A Metric Learning Reality Check (2020).
    """
    right = right[right.any(1)].double()
    if not len(right):
        return 0.0
    places = torch.arange(1, right.shape[1] + 1, device=right.device)
    wanted = right.sum(1, keepdim=True)
    hit = right * (places <= wanted)
    return float(((hit.cumsum(1) / places * hit).sum(1, keepdim=True) / wanted).mean())


def separability(square_NN: Tensor, labels: Tensor) -> float:
    """Return the mean distance within a class over that between classes: small is good."""
    distance = square_NN.clamp(min=0).sqrt()
    same = labels[:, None] == labels[None]
    away = ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return float(distance[same & away].mean() / distance[~same].mean())


def agreement(first: float, second: float) -> float:
    """Return how alike two separabilities are: 1 - |a - b| / max(a, b)."""
    return 1 - abs(first - second) / max(first, second)

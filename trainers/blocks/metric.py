"""Losses of metric learning on embeddings of length 1; all may be differentiated twice.

Every loss takes z_ND and labels_N and returns one number: same class near, others far. A batch
without a pair that a loss needs gives 0.

Shape legend: N, M samples, D size of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

MetricLoss = Callable[[Tensor, Tensor], Tensor]
TINY = 1e-6
"""Below it a squared distance counts as none: its root would have no second derivative."""


def squared_distances(a_ND: Tensor, b_MD: Tensor) -> Tensor:
    """Return |a - b|^2 (N, M) of embeddings of length 1, as 2 - 2 a b^T."""
    # Not torch.cdist: its second derivative is not implemented.
    return (2 - 2 * a_ND @ b_MD.T).clamp(min=TINY)


def contrastive(z_ND: Tensor, labels: Tensor, margin: float = 0.7) -> Tensor:
    """Return d^2 of same pairs and max(0, margin - d)^2 of others, each kind averaged.

    Source: Hadsell et al. (2006).
    """
    return pairwise(squared_distances(z_ND, z_ND), *_pairs(labels), margin)


def pairwise(square_NM: Tensor, same_NM: Tensor, other_NM: Tensor, margin: float = 0.7) -> Tensor:
    """Return the contrastive loss of pairs that are of one class, are not, or do not count."""
    far = functional.relu(margin - square_NM.sqrt()).square()
    return _mean(square_NM, same_NM) + _mean(far, other_NM)


def triplet(z_ND: Tensor, labels: Tensor, margin: float = 0.2, semi: bool = False) -> Tensor:
    """Return max(0, d(a, p) - d(a, n) + margin), mined within the batch.

    Batch-hard (Hermans et al., 2017): of every anchor the farthest same and the nearest other.
    Semi-hard (Schroff et al., 2015): of every same pair the nearest other beyond it, or the
    farthest other where none is.
    """
    distance = squared_distances(z_ND, z_ND).sqrt()
    same, other = _pairs(labels)
    if not semi:
        far = distance.masked_fill(~same, -1).amax(1)
        near = distance.masked_fill(~other, 9).amin(1)
        return _mean(functional.relu(far - near + margin), same.any(1) & other.any(1))
    beyond = other[:, None] & (distance[:, None] > distance[:, :, None])
    nearest = distance[:, None].masked_fill(~beyond, 9).amin(2)
    farthest = distance.masked_fill(~other, -1).amax(1, keepdim=True)
    negative = torch.where(beyond.any(2), nearest, farthest)
    return _mean(functional.relu(distance - negative + margin), same & other.any(1)[:, None])


def n_pair(z_ND: Tensor, labels: Tensor, scale: float = 8.0) -> Tensor:
    """Return log(1 + sum_n exp(s_an - s_ap)) of scaled similarities (Sohn, 2016)."""
    similar = scale * z_ND @ z_ND.T
    same, other = _pairs(labels)
    others = similar.masked_fill(~other, -torch.inf).logsumexp(1, keepdim=True)
    others = others.clamp(min=-1e4)
    return _mean(functional.softplus(others - similar), same)


def lifted(z_ND: Tensor, labels: Tensor, margin: float = 1.0) -> Tensor:
    """Return the lifted structure loss: every same pair against all others of both (Song, 2016)."""
    distance = squared_distances(z_ND, z_ND).sqrt()
    same, other = _pairs(labels)
    pull = (margin - distance).masked_fill(~other, -1e4).logsumexp(1)
    both = torch.logaddexp(pull[:, None], pull[None])
    return _mean(functional.relu(both + distance).square() / 2, same)


def multi_similarity(
    z_ND: Tensor, labels: Tensor, alpha: float = 2.0, beta: float = 50.0, base: float = 0.5
) -> Tensor:
    """Return the multi-similarity loss without mining (Wang et al., 2019)."""
    similar = z_ND @ z_ND.T - base
    same, other = _pairs(labels)

    def soft(values: Tensor, mask: Tensor, sharp: float) -> Tensor:
        values = (sharp * values).masked_fill(~mask, -1e4)
        zero = values.new_zeros(len(values), 1)
        return torch.cat([zero, values], 1).logsumexp(1) / sharp

    return (soft(-similar, same, alpha) + soft(similar, other, beta)).mean()


def log_ratio(z_ND: Tensor, target_NN: Tensor) -> Tensor:
    """Return the mean of (log(d_ai / d_aj) - log(D_ai / D_aj))^2 over all triples a, i, j.

    ``target_NN`` are the distances D that the labels have, above 0 off the diagonal.
    Source: Kim et al. (2019), relative distances of continuous labels.
    """
    count = len(z_ND)
    if count < 3:
        return z_ND.sum() * 0
    away = ~torch.eye(count, dtype=torch.bool, device=z_ND.device)
    wanted = target_NN.masked_fill(~away, 1.0)
    gap = squared_distances(z_ND, z_ND).log() / 2 - wanted.log()
    # The mean over pairs of squared differences is twice the variance: no triple is formed.
    return 2 * gap[away].view(count, count - 1).var(1).mean()


def relative(z_ND: Tensor, labels: Tensor, ratio: float = 4.0) -> Tensor:
    """Return the log-ratio loss that puts other classes ``ratio`` times as far as the own."""
    same = labels[:, None] == labels[None]
    return log_ratio(z_ND, torch.where(same, 1.0, ratio).to(z_ND.dtype))


LOSSES: dict[str, MetricLoss] = {
    "contrastive": contrastive,
    "triplet": triplet,
    "triplet_semi": partial(triplet, semi=True),
    "n_pair": n_pair,
    "lifted": lifted,
    "multi_similarity": multi_similarity,
    "relative": relative,
}


def _pairs(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return which pairs (N, N) are of one class, none with itself, and which are not."""
    same = labels[:, None] == labels[None]
    away = ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return same & away, ~same


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum() / mask.sum().clamp(min=1)

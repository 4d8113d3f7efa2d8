"""Frechet distance between two sets of features, as the FID measures pictures that were made up.

Source: Heusel et al., GANs trained by a two time-scale update rule (2017).

Shape legend: N samples, F features.
"""

from __future__ import annotations

import torch
from torch import Tensor


def frechet(one_NF: Tensor, other_NF: Tensor) -> float:
    """Return |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^1/2) of the Gaussians fitted to both."""
    (mean, spread_FF), (mean2, spread2_FF) = (_moments(x.double()) for x in (one_NF, other_NF))
    root_FF = _root(spread_FF)
    # tr (C1 C2)^1/2 is the sum of the square roots of the eigenvalues of C1^1/2 C2 C1^1/2.
    values_F = torch.linalg.eigvalsh(root_FF @ spread2_FF @ root_FF)
    shared = values_F.clamp(min=0).sqrt().sum()
    apart = (mean - mean2).square().sum() + spread_FF.trace() + spread2_FF.trace() - 2 * shared
    return float(apart.clamp(min=0))


def _moments(x_NF: Tensor) -> tuple[Tensor, Tensor]:
    return x_NF.mean(0), torch.cov(x_NF.T)


def _root(spread_FF: Tensor) -> Tensor:
    values_F, vectors_FF = torch.linalg.eigh(spread_FF)
    root_FF: Tensor = vectors_FF @ torch.diag(values_F.clamp(min=0).sqrt()) @ vectors_FF.T
    return root_FF

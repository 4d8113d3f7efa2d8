"""What every operation means, in plain numpy: the definition of truth for the C kernels.

y lives in the memory box; x, and z where there is one, with whoever asks. Each function
returns the new (y, x, z). fp32 throughout, one rounding per arithmetic sign.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]
Triple = tuple[Vector, Vector, Vector]


def scal(y: Vector, x: Vector, z: Vector, a: float, b: float) -> Triple:
    """Scale: y = a y."""
    return np.float32(a) * y, x, z


def axpy(y: Vector, x: Vector, z: Vector, a: float, b: float) -> Triple:
    """Accumulate: y = y + a x (P-PS 56)."""
    return y + np.float32(a) * x, x, z


def axpby(y: Vector, x: Vector, z: Vector, a: float, b: float) -> Triple:
    """Blend: y = a x + b y (P-PS 56)."""
    return np.float32(a) * x + np.float32(b) * y, x, z


def elastic(y: Vector, x: Vector, z: Vector, a: float, b: float) -> Triple:
    """Average elastically: d = a (x - y); y = y + d; x = x - d (EASGD, arXiv:1412.6651)."""
    d = np.float32(a) * (x - y)
    return y + d, x - d, z


def difference(y: Vector, x: Vector, z: Vector, a: float, b: float) -> Triple:
    """Move y elastically and keep the step for later: z = a (x - y); y = y + z (P-HET)."""
    d = np.float32(a) * (x - y)
    return y + d, x, d


def merge(y: Vector, x: Vector, z: Vector, a: float, b: float) -> Triple:
    """Add what x gained over its base z, and take the result along: x = z = y."""
    new = np.where(y == z, x, y + (x - z))
    return new, new, new


def fetch(y: Vector, x: Vector, z: Vector, a: float, b: float) -> Triple:
    """Accumulate and take the result along: y = y + a x; x = y."""
    new = y + np.float32(a) * x
    return new, new, z


def total(regions: Sequence[Vector], scale: float) -> Vector:
    """Add the regions in their order, then scale."""
    acc = regions[0].copy()
    for region in regions[1:]:
        acc = acc + region
    return acc * np.float32(scale)

"""What every operation means, in plain numpy: the definition of truth for the C kernels.

y and the states s and t live in the memory box; x, and z where there is one, with whoever
asks; k holds the scalars. fp32 throughout, one rounding per arithmetic sign. ``apply`` takes
any operation by its name. The functions without states take two scalars and return the new
(y, x, z); those with states return the new (y, s, t, x, z). ``kernels/packing.py`` defines the
formats in which x may arrive.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]
Triple = tuple[Vector, Vector, Vector]
State = tuple[Vector, Vector, Vector, Vector, Vector]
Scalars = Sequence[float]


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


def copy(y: Vector, x: Vector, z: Vector, a: float, b: float) -> Triple:
    """Replace: y = x."""
    return x.copy(), x, z


def clip(y: Vector, x: Vector, z: Vector, a: float, b: float) -> Triple:
    """Accumulate what stays within [-b, b]: y = y + a min(max(x, -b), b)."""
    most = np.float32(b)
    low: Vector = np.where(x < -most, -most, x)
    within: Vector = np.where(low > most, most, low)
    return y + np.float32(a) * within, x, z


def sgd(y: Vector, s: Vector, t: Vector, x: Vector, z: Vector, k: Scalars) -> State:
    """Descend with momentum; k: rate, momentum, decay, whether Nesterov's.

    g = x + decay y; s = momentum s + g; y = y - rate (g + momentum s), or y - rate s.
    """
    rate, momentum, decay, nesterov = (np.float32(value) for value in k[:4])
    g = x + decay * y
    s = momentum * s + g
    step: Vector = g + momentum * s if nesterov else s
    return y - rate * step, s, t, x, z


def outer(y: Vector, s: Vector, t: Vector, x: Vector, z: Vector, k: Scalars) -> State:
    """Take DiLoCo's outer step towards x (arXiv:2311.08105); k: rate, momentum.

    g = y - x; s = momentum s + g; y = y - rate (g + momentum s).
    """
    rate, momentum = (np.float32(value) for value in k[:2])
    g = y - x
    s = momentum * s + g
    step: Vector = g + momentum * s
    return y - rate * step, s, t, x, z


def adam(y: Vector, s: Vector, t: Vector, x: Vector, z: Vector, k: Scalars) -> State:
    """Take a step of Adam (arXiv:1412.6980), or with decoupled decay of AdamW (arXiv:1711.05101).

    k: rate, beta1, beta2, eps, decay, decoupled, and the number of the step from 1 on. The
    corrections of the bias are computed once, in double precision.
    """
    rate, beta1, beta2, eps, decay, decoupled = (np.float32(value) for value in k[:6])
    step, one = max(1, int(k[6])), np.float32(1)
    corrected = np.float32(float(rate) / (1 - _power(float(beta1), step)))
    root = np.float32(math.sqrt(1 - _power(float(beta2), step)))
    g = x if decoupled else x + decay * y
    y = y - rate * decay * y if decoupled else y
    s = beta1 * s + (one - beta1) * g
    t = beta2 * t + (one - beta2) * (g * g)
    deviation: Vector = np.sqrt(t)
    direction: Vector = s / (deviation / root + eps)
    return y - corrected * direction, s, t, x, z


def delay(y: Vector, s: Vector, t: Vector, x: Vector, z: Vector, k: Scalars) -> State:
    """Apply a gradient of old weights s, corrected for y (DC-ASGD, arXiv:1609.08326).

    k: rate, correction. y = y - rate (x + correction x x (y - s)); s = x = y.
    """
    rate, correction = (np.float32(value) for value in k[:2])
    new = y - rate * (x + correction * x * x * (y - s))
    return new, new, t, new, z


def settle(y: Vector, s: Vector, t: Vector, x: Vector, z: Vector, k: Scalars) -> State:
    """Fold what was gathered in s into y, and begin to gather anew: y = y + rate s; s = 0."""
    return y + np.float32(k[0]) * s, np.zeros_like(s), t, x, z


def gather(y: Vector, s: Vector, t: Vector, x: Vector, z: Vector, k: Scalars) -> State:
    """Move y and gather the same in s, for a later step: y = y + a x; s = s + b x."""
    return y + np.float32(k[0]) * x, s + np.float32(k[1]) * x, t, x, z


def adapt(y: Vector, s: Vector, t: Vector, x: Vector, z: Vector, k: Scalars) -> State:
    """Apply a gradient of old weights s, corrected by its mean square (DC-ASGD-a).

    k: rate, correction, decay of the mean, eps. t = decay t + (1 - decay) x x; then ``delay`` with
    correction / sqrt(t + eps) (arXiv:1609.08326, section 6).
    """
    rate, correction, decay, eps = (np.float32(value) for value in k[:4])
    t = decay * t + (np.float32(1) - decay) * (x * x)
    root: Vector = np.sqrt(t + eps)
    new = y - rate * (x + correction / root * (x * x) * (y - s))
    return new, new, t, new, z


def fold(y: Vector, s: Vector, t: Vector, x: Vector, z: Vector, k: Scalars) -> State:
    """Take an outer step with what was gathered in t; k: scale, rate, momentum, now, mark.

    g = scale t; s = momentum s + g; y = y - rate (now g + momentum s). Then t = 0, or -0 as a mark:
    elements marked so have taken their step and stay as they are. With now = 1 this is DiLoCo's
    outer Nesterov step, with now = 0 the delayed one (arXiv:2401.09135).
    """
    scale, rate, momentum, now = (np.float32(value) for value in k[:4])
    taken = (t == 0) & np.signbit(t)
    g = scale * t
    mean = momentum * s + g
    moved = y - rate * (now * g + momentum * mean)
    empty = np.full_like(t, -0.0 if k[4] else 0.0)
    return np.where(taken, y, moved), np.where(taken, s, mean), empty, x, z


PLAIN: dict[str, Callable[[Vector, Vector, Vector, float, float], Triple]] = {
    function.__name__: function
    for function in (scal, axpy, axpby, elastic, difference, merge, fetch, copy, clip)
}
STATEFUL: dict[str, Callable[[Vector, Vector, Vector, Vector, Vector, Scalars], State]] = {
    function.__name__: function
    for function in (sgd, outer, adam, delay, settle, gather, adapt, fold)
}


def apply(op: str, y: Vector, s: Vector, t: Vector, x: Vector, z: Vector, k: Scalars) -> State:
    """Return the new (y, s, t, x, z) of any operation; k has as many scalars as it needs."""
    if op in STATEFUL:
        return STATEFUL[op](y, s, t, x, z, k)
    a, b = (*k, 0.0, 0.0)[:2]
    y, x, z = PLAIN[op](y, x, z, a, b)
    return y, s, t, x, z


def matrix(c: Vector, a: Vector, b: Vector, alpha: float, beta: float) -> Vector:
    """Return alpha A B + beta C, added up over the inner dimension in runs of 128."""
    c = np.float32(beta) * c if beta else np.zeros_like(c)
    for start in range(0, a.shape[1], 128):
        acc = np.zeros_like(c)
        for i in range(start, min(start + 128, a.shape[1])):
            acc = acc + a[:, i : i + 1] * b[i]
        c = c + np.float32(alpha) * acc
    return c


def norm(x: Vector) -> float:
    """Return the Euclidean norm, added up in double precision in sixteen lanes."""
    padded = np.zeros(-(-len(x) // 16) * 16)
    padded[: len(x)] = x
    lanes = np.zeros(16)
    for row in padded.reshape(-1, 16):
        lanes = lanes + row * row
    total = 0.0
    for lane in lanes:
        total += float(lane)
    return math.sqrt(total)


def _power(base: float, exponent: int) -> float:
    """Multiply squares, as the C code does: pow differs between C libraries."""
    product = 1.0
    while exponent:
        product = product * base if exponent & 1 else product
        base, exponent = base * base, exponent >> 1
    return product


def total(regions: Sequence[Vector], scale: float) -> Vector:
    """Add the regions in their order, then scale."""
    acc = regions[0].copy()
    for region in regions[1:]:
        acc = acc + region
    return acc * np.float32(scale)

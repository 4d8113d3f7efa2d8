"""How much of a style repainted pictures have, and what they keep of the picture.

Shape legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from torch import Tensor

from trainers.nets.style import Judge, recoloured
from trainers.scores.ssim import luma, ssim

KEPT = 0.3
"""The structural similarity below which a picture counts as no longer recognised."""


def rated(judge: Judge, paintings_BCHW: Tensor, x_BCHW: Tensor, y_BCHW: Tensor) -> dict[str, float]:
    """Return the scores of pictures y that were repainted from x, both in [0, 1].

    The paintings' colours alone take a picture most of the way by the Gram matrices of random
    features; so ``quality`` counts what is gained beyond them, as a share.
    """
    before, after = judge(x_BCHW), judge(y_BCHW)
    style = judge.style(after).mean()
    coloured = judge(recoloured(x_BCHW, paintings_BCHW.to(x_BCHW.device)))
    texture = float(style / judge.style(coloured).mean())
    alike = float(ssim(luma(x_BCHW), luma(y_BCHW)).mean())
    return {
        "quality": max(0.0, 1 - texture) * min(1.0, max(0.0, alike) / KEPT),
        "style": float(style / judge.style(before).mean()),
        "texture": texture,
        "ssim": alike,
        "content": float(judge.content(after, before).mean()),
    }

"""How much of a style repainted pictures have, and what they keep of the picture.

Shape legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from torch import Tensor, nn

from trainers.nets.style import recoloured
from trainers.scores.ssim import luma, ssim

KEPT = 0.3
"""The structural similarity below which a picture counts as no longer recognised."""


def rated(
    judge: nn.Module, paintings_BCHW: Tensor, x_BCHW: Tensor, y_BCHW: Tensor
) -> dict[str, float]:
    """Return the scores of pictures y that were repainted from x, both in [0, 1].

    The paintings' colours alone take a picture most of the way; so ``quality`` counts what is
    gained beyond them, as a share.
    """
    content_B, style_B = judge(y_BCHW, x_BCHW)
    _, before_B = judge(x_BCHW, x_BCHW)
    _, coloured_B = judge(recoloured(x_BCHW, paintings_BCHW.to(x_BCHW.device)), x_BCHW)
    texture = float(style_B.mean() / coloured_B.mean())
    alike = float(ssim(luma(x_BCHW), luma(y_BCHW)).mean())
    return {
        "quality": max(0.0, 1 - texture) * min(1.0, max(0.0, alike) / KEPT),
        "style": float(style_B.mean() / before_B.mean()),
        "texture": texture,
        "ssim": alike,
        "content": float(content_B.mean()),
    }

"""How far the offsets of parallel paths can be trusted, and what that changes.

Source: KR 10-2023-0017679, claim 4 and paragraphs 135 to 137, which say in words what is written
here as formulae: where the paths estimate different offsets, the path of higher validity counts
more, in the result and in what the shared kernels learn from it.

Shape legend: B batch, P paths, K positions of the kernel, D squeezed channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from trainers.nets.deformable import Parts, Window

MODES = ("implicit", "gate", "gate+guide")
TOLERANCE = 1.0
"""Pixels of disagreement at which the paths are treated alike to 37 %."""
TEMPERATURE = 0.1
"""Of the preference for the more valid path."""
GUIDE = 0.01
"""Weight of the pull of the less valid path's offsets towards the others."""


class Judgement(NamedTuple):
    """What the offsets of all paths say about each other, at the full size of the map."""

    offset_PBKYHW: Tensor
    """In pixels of the full map: those of a path pooled by s count s times."""
    disagreement_BHW: Tensor
    validity_PBHW: Tensor
    weight_PBHW: Tensor
    """Detached; the weights of the paths sum to their number."""


def enlarge(x_BCHW: Tensor, factor: int, size: Sequence[int]) -> Tensor:
    """Enlarge a map by a whole factor, bilinearly, and cut it to a size."""
    if factor > 1:
        x_BCHW = functional.interpolate(x_BCHW, scale_factor=factor, mode="bilinear")
    return x_BCHW[..., : size[0], : size[1]]


def pairs(offset_B2KHW: Tensor) -> Tensor:
    """Return offsets as (B, K, 2, H, W): y and x of every position."""
    return offset_B2KHW.reshape(len(offset_B2KHW), -1, 2, *offset_B2KHW.shape[2:])


def judge(paths: Sequence[Parts], pools: Sequence[int], window: Window) -> Judgement:
    """Compare the offsets of parallel paths that see the input pooled by ``pools``."""
    size = paths[pools.index(1)].offset_B2KHW.shape[2:]
    offset_PBKYHW = torch.stack(
        [
            pairs(enlarge(path.offset_B2KHW, pool, size) * pool)
            for path, pool in zip(paths, pools, strict=True)
        ]
    )
    with torch.no_grad():
        away_PBHW = (offset_PBKYHW - offset_PBKYHW.mean(0)).norm(dim=3).mean(2)
        disagreement_BHW = 2 * away_PBHW.amax(0)
        validity_PBHW = torch.stack(
            [
                enlarge(validity(path, window), pool, size)[:, 0]
                for path, pool in zip(paths, pools, strict=True)
            ]
        )
        weight_PBHW = weigh(disagreement_BHW, validity_PBHW)
    return Judgement(offset_PBKYHW, disagreement_BHW, validity_PBHW, weight_PBHW)


def weigh(disagreement_BHW: Tensor, validity_PBHW: Tensor) -> Tensor:
    """Return the weight of each path: 1 where they agree, more for the more valid elsewhere."""
    agreement_BHW = torch.exp(-disagreement_BHW / TOLERANCE)
    preference_PBHW = len(validity_PBHW) * (validity_PBHW / TEMPERATURE).softmax(0)
    return agreement_BHW + (1 - agreement_BHW) * preference_PBHW


def validity(path: Parts, window: Window) -> Tensor:
    """Return validity_B1HW: samples are inside the map, and like the pixel they belong to."""
    alike_BKHW = functional.cosine_similarity(path.squeezed_BDHW[:, :, None], path.cols_BDKHW, 1)
    coherence_BHW = alike_BKHW.clamp(min=0).mean(1)
    return (inside(path.offset_B2KHW, window) * coherence_BHW)[:, None]


def inside(offset_B2KHW: Tensor, window: Window) -> Tensor:
    """Return the share of sample points that lie inside the map, for every pixel."""
    height, width = offset_B2KHW.shape[2:]
    steps = torch.arange(window.side, device=offset_B2KHW.device) * window.dilation - window.edge
    rows, columns = (torch.arange(n, device=steps.device) for n in (height, width))
    offset_BKYHW = pairs(offset_B2KHW)
    y_BKHW = offset_BKYHW[:, :, 0] + steps.repeat_interleave(window.side)[:, None, None]
    x_BKHW = offset_BKYHW[:, :, 1] + steps.repeat(window.side)[:, None, None]
    y_BKHW, x_BKHW = y_BKHW + rows[:, None], x_BKHW + columns
    good = (y_BKHW >= 0) & (y_BKHW <= height - 1) & (x_BKHW >= 0) & (x_BKHW <= width - 1)
    share_BHW: Tensor = good.float().mean(1)
    return share_BHW


def guidance(judged: Judgement) -> Tensor:
    """Return the loss that pulls offsets to those of the most valid path, where they disagree."""
    best_BHW = judged.validity_PBHW.argmax(0)
    at = best_BHW[None, :, None, None].expand_as(judged.offset_PBKYHW[:1])
    towards = judged.offset_PBKYHW.gather(0, at).detach().expand_as(judged.offset_PBKYHW)
    pull = functional.huber_loss(judged.offset_PBKYHW, towards, reduction="none")
    apart_BHW = 1 - torch.exp(-judged.disagreement_BHW / TOLERANCE)
    return GUIDE * (pull.mean((2, 3)).sum(0) * apart_BHW).mean()


def diagnose(judged: Judgement, pools: Sequence[int]) -> dict[str, Tensor]:
    """Return the mean disagreement, the offsets' ratio, the validities and who won how often.

    The ratio is that of mean absolute offsets of the first two paths, in pixels of their own maps;
    paragraph 135 expects 2 for a path and one that sees everything at half the size. Their
    correlation is over all offsets in pixels of the full map, 0 where one path never moves.
    """
    length = judged.offset_PBKYHW.detach().norm(dim=3).flatten(1).mean(1)
    own = length / torch.tensor(pools, device=length.device)
    best = judged.validity_PBHW.argmax(0)
    first, second = (each - each.mean() for each in judged.offset_PBKYHW[:2].detach().flatten(1))
    said = {
        "offset_disagreement": judged.disagreement_BHW.mean(),
        "offset_ratio": own[0] / own[1].clamp(min=1e-9),
        "offset_correlation": functional.cosine_similarity(first, second, 0),
    }
    for number, valid in enumerate(judged.validity_PBHW, 1):
        said[f"validity_{number}"] = valid.mean()
        said[f"won_{number}"] = (best == number - 1).float().mean()
    return said

"""GoogLeNet: blocks of four parallel branches, where 1x1 convolutions save most of the work.

Source: Szegedy et al., Going Deeper with Convolutions (CVPR 2015), table 1; BatchNorm instead of
local response normalisation as in Ioffe and Szegedy (2015) on request.

Shape legend: B batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from trainers.nets.backbone import Backbone, named, scaled
from trainers.nets.convnet import MaxPool2d, he_init

Made = TypeVar("Made")


@dataclass(frozen=True)
class Branches:
    """Channels of the four branches of a block; ``reduce`` are those of 1x1 convolutions before."""

    one: int
    three_reduce: int
    three: int
    five_reduce: int
    five: int
    pool: int

    @property
    def out(self) -> int:
        """Return the channels of the block's map."""
        return self.one + self.three + self.five + self.pool

    def times(self, width: float) -> Branches:
        """Return all channels scaled."""
        return Branches(*scaled(astuple(self), width))


TABLE = {
    "3a": Branches(64, 96, 128, 16, 32, 32),
    "3b": Branches(128, 128, 192, 32, 96, 64),
    "4a": Branches(192, 96, 208, 16, 48, 64),
    "4b": Branches(160, 112, 224, 24, 64, 64),
    "4c": Branches(128, 128, 256, 24, 64, 64),
    "4d": Branches(112, 144, 288, 32, 64, 64),
    "4e": Branches(256, 160, 320, 32, 128, 128),
    "5a": Branches(256, 160, 320, 32, 128, 128),
    "5b": Branches(384, 192, 384, 48, 128, 128),
}
POOL_AFTER = ("3b", "4e")
HELPED = ("4a", "4d")
"""Blocks with an auxiliary classifier."""


@dataclass(frozen=True)
class Plan:
    """Which GoogLeNet."""

    classes: int = 1000
    side: int = 224
    """Height and width of the pictures."""
    width: float = 1.0
    """Factor on all channels."""
    small: bool = False
    """For pictures of 32 pixels: the stem has stride 2, not 8."""
    norm: bool = False
    """BatchNorm after every convolution instead of local response normalisation in the stem."""
    auxiliary: bool = True
    """With the two classifiers that only help to train."""
    at_once: bool = False
    """Compute the branches of a block in threads of their own."""


class InceptionBlock(nn.Module):
    """1x1 | 1x1, 3x3 | 1x1, 5x5 | 3x3 pooling, 1x1: side by side, joined along the channels."""

    def __init__(
        self,
        before: int,
        after: Branches,
        norm: bool = False,
        reduce: bool = True,
        at_once: bool = False,
    ) -> None:
        """Build the branches; without ``reduce`` the 3x3 and 5x5 see all channels (to compare)."""
        super().__init__()
        self.at_once = at_once
        three, five = (
            ((after.three_reduce, 1), (after.three, 3)),
            ((after.five_reduce, 1), (after.five, 5)),
        )
        self.branches = nn.ModuleList(
            [
                _convs(before, [(after.one, 1)], norm),
                _convs(before, three if reduce else three[1:], norm),
                _convs(before, five if reduce else five[1:], norm),
                nn.Sequential(
                    MaxPool2d(3, stride=1, padding=1), *_convs(before, [(after.pool, 1)], norm)
                ),
            ]
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the maps of the branches, joined."""
        if self.at_once:
            return torch.cat(threads(list(self.branches), x_BCHW), 1)
        return torch.cat([branch(x_BCHW) for branch in self.branches], 1)


class GoogLeNet(Backbone):
    """Classify pictures; layers are named stem, inception3a, ..., inception5b, pool3 and pool4.

    Returns logits_BK; in training, with auxiliary classifiers, also their logits: three in all.
    """

    def __init__(self, plan: Plan | None = None, inputs: int = 3) -> None:
        """Build the layers, He-initialised."""
        super().__init__()
        plan = plan or Plan()
        first, before = scaled((64, 192), plan.width)
        parts: list[tuple[str, nn.Module]] = [("stem", _stem(inputs, (first, before), plan))]
        self.channels, self.strides = {"stem": before}, {"stem": 2 if plan.small else 8}
        self.auxiliary = nn.ModuleDict()
        stride = self.strides["stem"]
        for place, branches in TABLE.items():
            after, name = branches.times(plan.width), f"inception{place}"
            parts.append((name, InceptionBlock(before, after, plan.norm, at_once=plan.at_once)))
            before = self.channels[name] = after.out
            self.strides[name] = stride
            if plan.auxiliary and place in HELPED:
                self.auxiliary[name] = _auxiliary(before, plan.side // stride, plan)
            if place in POOL_AFTER:
                stride *= 2
                parts.append((f"pool{place[0]}", MaxPool2d(3, stride=2, ceil_mode=True)))
                self.channels[parts[-1][0]], self.strides[parts[-1][0]] = before, stride
        self.layers = named(parts)
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.4),
            nn.Linear(before, plan.classes),
        )
        he_init(self)

    def forward(self, x_BCHW: Tensor) -> Tensor | tuple[Tensor, ...]:  # type: ignore[override]
        """Return logits_BK, in training with those of the auxiliary classifiers."""
        if not (self.training and self.auxiliary):
            return super().forward(x_BCHW)
        helped, x_BCHW = [], self.inputs(x_BCHW)
        for name, layer in self.layers.named_children():
            x_BCHW = layer(x_BCHW)
            if name in self.auxiliary:
                helped.append(self.auxiliary[name](x_BCHW))
        return (self.head(x_BCHW), *helped)


def threads(branches: Sequence[Callable[[Tensor], Made]], x_BCHW: Tensor) -> list[Made]:
    """Return what some branches make of x, each computed in a thread of its own."""
    # Gradients and mixed precision are settings of a thread: the new ones take over ours.
    grad, kind = torch.is_grad_enabled(), x_BCHW.device.type
    mixed, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)

    def run(branch: Callable[[Tensor], Made]) -> Made:
        with torch.set_grad_enabled(grad), torch.autocast(kind, dtype, enabled=mixed):
            return branch(x_BCHW)

    with ThreadPoolExecutor(len(branches)) as pool:
        return list(pool.map(run, branches))


def _convs(before: int, sizes: Sequence[tuple[int, int]], norm: bool) -> nn.Sequential:
    return nn.Sequential(*(part for a in _each(before, sizes) for part in _conv(*a, norm)))


def _each(before: int, sizes: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    for after, size in sizes:
        yield before, after, size
        before = after


def _conv(before: int, after: int, size: int, norm: bool, stride: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(before, after, size, stride, size // 2, bias=not norm)
    return [conv, nn.BatchNorm2d(after), nn.ReLU()] if norm else [conv, nn.ReLU()]


def _stem(inputs: int, channels: tuple[int, int], plan: Plan) -> nn.Sequential:
    first, last = channels
    pool = MaxPool2d(3, stride=2, ceil_mode=True)
    response = [] if plan.norm else [nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75)]
    begin = [*_conv(inputs, first, 3, plan.norm)]
    if not plan.small:
        begin = [*_conv(inputs, first, 7, plan.norm, stride=2), pool]
    middle = [*_conv(first, first, 1, plan.norm), *_conv(first, last, 3, plan.norm)]
    return nn.Sequential(*begin, *response, *middle, *response, pool)


def _auxiliary(before: int, side: int, plan: Plan) -> nn.Sequential:
    reduced, hidden = scaled((128, 1024), plan.width)
    grid = (side - 5) // 3 + 1
    return nn.Sequential(
        nn.AvgPool2d(5, stride=3),
        *_conv(before, reduced, 1, plan.norm),
        nn.Flatten(),
        nn.Linear(reduced * grid**2, hidden),
        nn.ReLU(),
        nn.Dropout(0.7),
        nn.Linear(hidden, plan.classes),
    )

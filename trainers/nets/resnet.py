"""ResNet: layers learn the residual F(x) = H(x) - x, and what is returned is F(x) + x.

Source: He, Zhang, Ren and Sun, Deep Residual Learning (CVPR 2016), tables 1 and 6. Stride 2 is in
the 3x3 convolution of a bottleneck, as in all later work; layers and their order are those of
torchvision.

Shape legend: B batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.nets.backbone import Backbone, named, scaled
from trainers.nets.convnet import MaxPool2d

BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
"""Blocks of each of the four stages, by the depth of a net for ImageNet."""
BOTTLENECK = 50
"""Nets for ImageNet have bottlenecks from this depth on."""
SHORTCUTS = ("projection", "pad", "none")


@dataclass(frozen=True)
class Shape:
    """Which ResNet: its depth, and what was changed in it."""

    depth: int = 50
    small: bool = False
    """For pictures of 32 pixels: three stages of 16, 32 and 64 channels, depth 6n + 2."""
    width: float = 1.0
    """Factor on all channels."""
    shortcut: str = "projection"
    """Where the shape changes: projection is a 1x1 convolution, pad has zeros and no parameters
    (option A of the paper). With none there are no shortcuts at all: the plain net of the paper."""
    zero_gamma: bool = False
    """Start the last BatchNorm of every block at 0, so that F(x) = 0 and a block returns x."""
    output_stride: int = 32
    """16 or 8: the last stages keep their size and are dilated instead (DeepLab)."""

    def blocks(self) -> tuple[int, ...]:
        """Return the number of blocks of each stage; raises ValueError for other depths."""
        if self.small and self.depth >= 8 and self.depth % 6 == 2:
            return (self.depth // 6,) * 3
        if not self.small and self.depth in BLOCKS:
            return BLOCKS[self.depth]
        allowed = "6n + 2" if self.small else ", ".join(map(str, BLOCKS))
        raise ValueError(f"depth={self.depth} is no ResNet - allowed: {allowed}")

    def bottleneck(self) -> bool:
        """Return whether its blocks are bottlenecks."""
        return not self.small and self.depth >= BOTTLENECK


@dataclass(frozen=True)
class Unit:
    """One block: channels that come in, those of its 3x3 convolutions, stride and dilation."""

    before: int
    inner: int
    stride: int = 1
    dilation: int = 1
    """Of the 3x3 convolution that may have a stride."""
    then: int = 1
    """Dilation of a second one."""
    shortcut: str = "projection"


class Residual(nn.Module):
    """ReLU(F(x) + shortcut(x)), or ReLU(F(x)) without a shortcut."""

    def __init__(self, unit: Unit, bottleneck: bool = False) -> None:
        """Build F and the shortcut."""
        super().__init__()
        after = unit.inner * (4 if bottleneck else 1)
        self.residual = _bottleneck(unit) if bottleneck else _basic(unit)
        self.changes = unit.stride > 1 or unit.before != after
        self.kind, self.stride, self.more = unit.shortcut, unit.stride, after - unit.before
        self.projection = nn.Sequential()
        if self.changes and unit.shortcut == "projection":
            self.projection = nn.Sequential(
                nn.Conv2d(unit.before, after, 1, stride=unit.stride, bias=False),
                nn.BatchNorm2d(after),
            )

    def shortcut(self, x_BCHW: Tensor) -> Tensor:
        """Return x in the shape that F(x) has."""
        if self.changes and self.kind == "pad":
            smaller_BCHW = x_BCHW[:, :, :: self.stride, :: self.stride]
            return functional.pad(smaller_BCHW, (0, 0, 0, 0, 0, self.more))
        projected_BCHW: Tensor = self.projection(x_BCHW)
        return projected_BCHW

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return what the block makes of x."""
        made_BCHW: Tensor = self.residual(x_BCHW)
        if self.kind != "none":
            made_BCHW = made_BCHW + self.shortcut(x_BCHW)
        return made_BCHW.relu()


class ResNet(Backbone):
    """Classify pictures; layers are named stem, layer1, ..., layer4 (small ones have three).

    The maps of layer1 to layer4 have strides 4, 8, 16 and 32, or less with an ``output_stride``.
    ResNet-50 with 1,000 classes has 25,557,032 parameters.
    """

    def __init__(self, shape: Shape | None = None, classes: int = 1000, inputs: int = 3) -> None:
        """Build the layers, He-initialised; raises ValueError for a depth that there is not."""
        super().__init__()
        shape = shape or Shape()
        blocks, bottleneck = shape.blocks(), shape.bottleneck()
        stages = list(scaled((16, 32, 64) if shape.small else (64, 128, 256, 512), shape.width))
        self.channels, self.strides = {"stem": stages[0]}, {"stem": 1 if shape.small else 4}
        parts = [("stem", _stem(inputs, stages[0], shape.small))]
        before, stride, dilation = stages[0], self.strides["stem"], 1
        for number, (count, inner) in enumerate(zip(blocks, stages, strict=True)):
            unit = Unit(before, inner, 2 if number else 1, dilation, dilation, shape.shortcut)
            if stride * unit.stride > shape.output_stride:
                dilation *= unit.stride
                unit = replace(unit, stride=1, then=dilation)
            stage = _stage(unit, count, bottleneck)
            before, stride = inner * (4 if bottleneck else 1), stride * unit.stride
            name = f"layer{number + 1}"
            parts.append((name, stage))
            self.channels[name], self.strides[name] = before, stride
        self.layers = named(parts)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))
        _init(self, shape.zero_gamma)

    def parts(self) -> list[nn.Module]:
        """Return the stem and every block."""
        stem, *stages = self.layers.children()
        return [stem, *(block for stage in stages for block in stage.children())]


@torch.no_grad()
def residual_sizes(net: nn.Module, x_BCHW: Tensor) -> dict[str, float]:
    """Return the mean |F(x)| over the mean |x| of every block that has a shortcut, by its name.

    x is what the shortcut returns. The net stays as it is and keeps its mode.
    """
    sizes: dict[str, float] = {}

    def look(name: str, block: Residual, x_BCHW: Tensor) -> None:
        much = block.shortcut(x_BCHW).abs().mean().clamp(min=1e-12)
        sizes[name] = float(block.residual(x_BCHW).abs().mean() / much)

    hooks = [
        block.register_forward_pre_hook(lambda block, args, name=name: look(name, block, args[0]))
        for name, block in net.named_modules()
        if isinstance(block, Residual) and block.kind != "none"
    ]
    mode = net.training
    net.eval()
    try:
        net(x_BCHW.to(next(net.parameters()).device))
    finally:
        net.train(mode)
        for hook in hooks:
            hook.remove()
    return sizes


def _stem(inputs: int, channels: int, small: bool) -> nn.Sequential:
    if small:
        return nn.Sequential(*_conv(inputs, channels, 3), nn.ReLU())
    pool = MaxPool2d(3, stride=2, padding=1)
    return nn.Sequential(*_conv(inputs, channels, 7, stride=2), nn.ReLU(), pool)


def _stage(first: Unit, count: int, bottleneck: bool) -> nn.Sequential:
    after = first.inner * (4 if bottleneck else 1)
    rest = replace(first, before=after, stride=1, dilation=first.then)
    units = [first] + [rest] * (count - 1)
    return nn.Sequential(*(Residual(unit, bottleneck) for unit in units))


def _basic(unit: Unit) -> nn.Sequential:
    return nn.Sequential(
        *_conv(unit.before, unit.inner, 3, unit.stride, unit.dilation),
        nn.ReLU(),
        *_conv(unit.inner, unit.inner, 3, 1, unit.then),
    )


def _bottleneck(unit: Unit) -> nn.Sequential:
    return nn.Sequential(
        *_conv(unit.before, unit.inner, 1),
        nn.ReLU(),
        *_conv(unit.inner, unit.inner, 3, unit.stride, unit.dilation),
        nn.ReLU(),
        *_conv(unit.inner, unit.inner * 4, 1),
    )


def _conv(
    before: int, after: int, size: int, stride: int = 1, dilation: int = 1
) -> tuple[nn.Module, nn.Module]:
    padding = size // 2 * dilation
    conv = nn.Conv2d(before, after, size, stride, padding, dilation, bias=False)
    return conv, nn.BatchNorm2d(after)


def _init(net: nn.Module, zero_gamma: bool) -> None:
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        if zero_gamma and isinstance(layer, Residual):
            nn.init.zeros_(layer.residual[-1].weight)  # type: ignore[arg-type]

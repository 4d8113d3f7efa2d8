"""VoVNetV2: few layers whose outputs are all joined once, quick and frugal of memory.

Source: Lee and Park, CenterMask (2020), section 3.3 (arXiv:1911.06667), after Lee et al. (2019).

Shape legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.nets.backbone import Backbone, named
from trainers.nets.convnet import MaxPool2d

STAGES = ("stage2", "stage3", "stage4", "stage5")


@dataclass(frozen=True)
class Size:
    """How large a VoVNet is; a stage has one value of each row."""

    convs: int = 5
    """3x3 convolutions of a module."""
    modules: tuple[int, int, int, int] = (1, 1, 1, 1)
    inner: tuple[int, int, int, int] = (128, 160, 192, 224)
    """Channels of those convolutions."""
    outer: tuple[int, int, int, int] = (256, 512, 768, 1024)
    """Channels that a stage returns."""
    stem: tuple[int, int, int] = (64, 64, 128)
    depthwise: bool = False
    """Convolutions of one channel each and 1x1 ones instead of full ones."""


_SLIM = Size(3, inner=(64, 80, 96, 112), outer=(112, 256, 384, 512))
SIZES = {
    "tiny": Size(3, inner=(16, 20, 24, 28), outer=(32, 64, 96, 128), stem=(16, 16, 32)),
    "19-slim-dw": Size(3, inner=_SLIM.inner, outer=_SLIM.outer, stem=(64, 64, 64), depthwise=True),
    "19-slim": _SLIM,
    "19": Size(3),
    "39": Size(5, (1, 1, 2, 2)),
    "57": Size(5, (1, 1, 4, 3)),
    "99": Size(5, (1, 3, 9, 3)),
}
NORMS = ("group", "batch", "frozen")


class VoVNet(Backbone):
    """Layers named stem and stage2 to stage5, with maps at strides 4, 4, 8, 16 and 32."""

    def __init__(
        self, size: str = "39", norm: str = "batch", classes: int = 0, inputs: int = 3
    ) -> None:
        """Build the layers, He-initialised.

        Args:
            size: one of ``SIZES``.
            norm: group, batch, or frozen: batch norm that stays as it was loaded.
            classes: of a head that names the picture; 0: none.
            inputs: channels of pictures.

        Raises:
            ValueError: for a size or a norm that there is not.
        """
        super().__init__()
        if size not in SIZES or norm not in NORMS:
            raise ValueError(
                f"size {size}, norm {norm} - allowed: {', '.join(SIZES)}; {', '.join(NORMS)}"
            )
        plan = SIZES[size]
        self.channels, self.strides = {"stem": plan.stem[-1]}, {"stem": 4}
        parts: list[tuple[str, nn.Module]] = [("stem", _stem(plan, norm, inputs))]
        before = plan.stem[-1]
        for number, name in enumerate(STAGES):
            inner, outer = plan.inner[number], plan.outer[number]
            layers: list[nn.Module] = [MaxPool2d(3, 2, ceil_mode=True)] if number else []
            for place in range(plan.modules[number]):
                size_of = (before, inner, outer)
                layers.append(OneShot(size_of, plan.convs, norm, plan.depthwise, place > 0))
                before = outer
            parts.append((name, nn.Sequential(*layers)))
            self.channels[name], self.strides[name] = outer, 4 * 2**number
        self.layers = named(parts)
        self.head = nn.Identity()
        if classes:
            pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.head = nn.Sequential(*pooled, nn.Linear(before, classes))
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")


class OneShot(nn.Module):
    """One-shot aggregation: convolutions in a row, their input and all outputs joined at the end.

    The joined map is weighed channel by channel; all but the first module of a stage add their
    input to it.
    """

    def __init__(
        self,
        channels: tuple[int, int, int],
        convs: int,
        norm: str,
        depthwise: bool = False,
        identity: bool = False,
    ) -> None:
        """Build it for (input, inner, output) channels; see ``Size`` for the rest."""
        super().__init__()
        before, inner, outer = channels
        self.identity = identity
        self.reduce = nn.Sequential()
        first = before
        if depthwise and before != inner:
            self.reduce, first = unit(before, inner, norm, 1), inner
        self.convs = nn.ModuleList(
            _conv(first if place == 0 else inner, inner, norm, depthwise) for place in range(convs)
        )
        self.join = unit(before + convs * inner, outer, norm, 1)
        self.weigh = Weighing(outer)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return a map of the same size."""
        found, y_BCHW = [x_BCHW], self.reduce(x_BCHW)
        for conv in self.convs:
            y_BCHW = conv(y_BCHW)
            found.append(y_BCHW)
        joined_BCHW: Tensor = self.weigh(self.join(torch.cat(found, 1)))
        return joined_BCHW + x_BCHW if self.identity else joined_BCHW


class Weighing(nn.Module):
    """eSE: weights of channels from their means by one linear layer, which loses none of them."""

    def __init__(self, channels: int) -> None:
        """Build the layer."""
        super().__init__()
        self.linear = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the map with its channels weighed by 0 to 1."""
        mean_BC11 = x_BCHW.mean((2, 3), keepdim=True)
        weights_BC11 = functional.relu6(self.linear(mean_BC11) + 3) / 6
        return x_BCHW * weights_BC11


class FrozenNorm(nn.Module):
    """A batch norm with constants: those of a pretrained net, for batches too small for others."""

    def __init__(self, channels: int) -> None:
        """Begin as the identity."""
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("mean", 0.0), ("var", 1.0)):
            named = name if name in ("weight", "bias") else f"running_{name}"
            self.register_buffer(named, torch.full((channels,), value))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the map, scaled and shifted channel by channel."""
        own = {name: value[:, None, None] for name, value in self.named_buffers()}
        scale_C11 = own["weight"] * (own["running_var"] + 1e-5).rsqrt()
        return x_BCHW * scale_C11 + (own["bias"] - own["running_mean"] * scale_C11)


def norm_of(channels: int, kind: str) -> nn.Module:
    """Return a normalisation of maps; groups are of about eight channels, at most 32 of them."""
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "frozen":
        return FrozenNorm(channels)
    groups = max(n for n in range(1, min(32, max(1, channels // 4)) + 1) if channels % n == 0)
    return nn.GroupNorm(groups, channels)


def unit(before: int, after: int, norm: str, side: int = 3, stride: int = 1) -> nn.Sequential:
    """Return a convolution with a normalisation and a ReLU behind it."""
    conv = nn.Conv2d(before, after, side, stride, side // 2, bias=False)
    return nn.Sequential(conv, norm_of(after, norm), nn.ReLU(inplace=True))


def _conv(before: int, after: int, norm: str, depthwise: bool, stride: int = 1) -> nn.Sequential:
    if not depthwise:
        return unit(before, after, norm, 3, stride)
    own = nn.Conv2d(before, before, 3, stride, 1, groups=before, bias=False)
    return nn.Sequential(own, *unit(before, after, norm, 1))


def _stem(plan: Size, norm: str, inputs: int) -> nn.Sequential:
    first, second, third = plan.stem
    return nn.Sequential(
        unit(inputs, first, norm, 3, 2),
        _conv(first, second, norm, plan.depthwise),
        _conv(second, third, norm, plan.depthwise, 2),
    )

"""Squeezed deformable convolution: offsets say where each output pixel looks, few channels move.

Source: KR 10-2023-0017679, paragraphs 9 to 11, 59 to 66, 78 to 88 and 110 to 123. An ordinary
deformable convolution (Dai et al., 2017) copies every channel K times before it mixes them, K the
size of the kernel; here a 1x1 convolution divides the channels by K first, so that the copies take
no more room than the input does.

Shape legend: B batch, C channels, D squeezed channels, O output channels, K positions of the
kernel, H height, W width. Offsets are (y0, x0, y1, x1, ...) in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kernels.vision import deform_sample

OFFSETS = ("real", "integer", "auto", "tuned")
CORNERS = 4
"""Samples that one bilinear reading takes; a whole position takes one."""


@dataclass(frozen=True)
class Window:
    """The positions of a kernel: its side, and how it moves over the map."""

    side: int = 3
    stride: int = 1
    padding: int | None = None
    """None keeps the size of the map."""
    dilation: int = 1

    @property
    def positions(self) -> int:
        """Return how many positions the kernel has."""
        return self.side * self.side

    @property
    def edge(self) -> int:
        """Return the padding."""
        same = self.dilation * (self.side // 2)
        return same if self.padding is None else self.padding

    def conv(self, channels: int, out: int, bias: bool = False) -> nn.Conv2d:
        """Return an ordinary convolution with these positions."""
        return nn.Conv2d(channels, out, self.side, self.stride, self.edge, self.dilation, bias=bias)


class Shared(NamedTuple):
    """The kernels that parallel paths have in common: all but the squeeze."""

    offset: nn.Conv2d
    """2K channels from the whole input."""
    feature: nn.Conv2d
    """A 1x1 convolution of the D * K values moved to a pixel: a kernel that lies anywhere."""


class Parts(NamedTuple):
    """What a squeezed deformable convolution has worked out, for those who judge its offsets."""

    y_BOHW: Tensor
    offset_B2KHW: Tensor
    squeezed_BDHW: Tensor
    cols_BDKHW: Tensor


class SDfConv2d(nn.Module):
    """A squeezed deformable convolution, in place of any convolution.

    ``offsets`` says how they are used: "real" reads between the pixels. "integer" does so while it
    trains and rounds them in eval mode, so that no reading takes four corners; "auto" rounds only
    where the readings would take more than ``budget`` bytes. "tuned" rounds in training, too: the
    convolution of the offsets then gets no gradient at all. ``set_offsets`` changes it.

    Args:
        channels: of the input.
        out: channels of the output.
        window: the kernel's positions.
        squeeze: "kernel" divides the channels by the kernel's size, a number sets them, None keeps
            them all (the ordinary deformable convolution).
        shared: kernels owned by someone else, for parallel paths.
        normed: whether the squeezed channels are normalised.
    """

    def __init__(
        self,
        channels: int,
        out: int,
        window: Window = Window(),
        squeeze: str | int | None = "kernel",
        shared: Shared | None = None,
        normed: bool = True,
    ) -> None:
        super().__init__()
        self.window = window
        self.offsets, self.budget = "real", 0
        self.rate = 1.0
        """Factor on the gradient of the offsets (0.1 where they run away)."""
        width = squeezed_channels(channels, window, squeeze)
        narrow = [nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)]
        self.squeeze = nn.Sequential(*narrow[: 0 if squeeze is None else 1 + normed])
        made = shared or shared_kernels(channels, width, out, window)
        self.offset, self.feature = made.offset, made.feature

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return y_BOHW."""
        return self.parts(x_BCHW).y_BOHW

    def parts(self, x_BCHW: Tensor) -> Parts:
        """Return y_BOHW with the offsets, the squeezed map and its samples."""
        rounds = self.rounds(x_BCHW)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not rounds):
            offset_B2KHW = self.offset(x_BCHW)
        if self.rate != 1:
            offset_B2KHW = offset_B2KHW.detach().lerp(offset_B2KHW, self.rate)
        squeezed_BDHW = self.squeeze(x_BCHW)
        window = self.window
        cols_BDKHW = deform_sample(
            squeezed_BDHW, offset_B2KHW, window.side, window.stride, window.edge, window.dilation,
            integer=rounds,
        )  # fmt: skip
        y_BOHW = self.feature(cols_BDKHW.flatten(1, 2))
        return Parts(y_BOHW, offset_B2KHW, squeezed_BDHW, cols_BDKHW)

    def rounds(self, x_BCHW: Tensor) -> bool:
        """Return whether offsets are rounded for this input now."""
        if self.offsets == "tuned":
            return True
        if self.training or self.offsets == "real":
            return False
        return self.offsets == "integer" or self.temporary(x_BCHW) > self.budget

    def temporary(self, x_BCHW: Tensor, integer: bool = False) -> int:
        """Return the bytes of the samples: each at four corners unless offsets are whole.

        The patent's way to count (paragraphs 83 to 87); a fused kernel never stores the corners.
        """
        batch, _, height, width = x_BCHW.shape
        pixels = batch * height * width // self.window.stride**2
        corners = 1 if integer else CORNERS
        return corners * self.feature.in_channels * pixels * x_BCHW.element_size()


def squeezed_channels(channels: int, window: Window, squeeze: str | int | None) -> int:
    """Return how many channels are moved: by default the input's, divided by the kernel's size."""
    if squeeze is None:
        return channels
    return max(1, channels // window.positions) if squeeze == "kernel" else int(squeeze)


def shared_kernels(channels: int, width: int, out: int, window: Window = Window()) -> Shared:
    """Make an offset convolution that starts at zero, and a feature kernel after He.

    Args:
        channels: that the offsets are estimated from: the full input.
        width: squeezed channels.
        out: channels of the output.
    """
    offset = window.conv(channels, 2 * window.positions, bias=True)
    nn.init.zeros_(offset.weight)
    nn.init.zeros_(offset.bias)  # type: ignore[arg-type]
    feature = nn.Conv2d(width * window.positions, out, 1, bias=False)
    nn.init.kaiming_normal_(feature.weight, nonlinearity="relu")
    return Shared(offset, feature)


def deformables(module: nn.Module) -> Iterator[SDfConv2d]:
    """Yield all squeezed deformable convolutions of a network."""
    yield from (layer for layer in module.modules() if isinstance(layer, SDfConv2d))


def set_offsets(module: nn.Module, offsets: str, budget: int = 0) -> int:
    """Set how a whole network uses its offsets; return how many convolutions that was.

    ``set_offsets(net, "real")`` takes everything back: no weight is changed by it.

    Args:
        module: the network.
        offsets: real, integer, auto or tuned; see ``SDfConv2d``.
        budget: bytes of samples above which "auto" rounds.
    """
    if offsets not in OFFSETS:
        raise ValueError(f"offsets={offsets} - allowed: {', '.join(OFFSETS)}")
    layers = list(deformables(module))
    for layer in layers:
        layer.offsets, layer.budget = offsets, budget
    return len(layers)


def offset_parameters(module: nn.Module) -> set[nn.Parameter]:
    """Return the weights that estimate offsets; they stand still while offsets are tuned."""
    return {p for layer in deformables(module) for p in layer.offset.parameters()}

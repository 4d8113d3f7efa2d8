"""Where a context module goes in a segmentation network, by name.

A module stands behind the last stage of the encoder; an extended one is joined in series by a
second one of its kind at a finer stride, which strengthens the decoder (KR 10-2023-0017679,
paragraphs 27 to 37 and 140 to 151, figures 6 and 7).

Shape legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dlplatform.errors import UsageError, closest
from trainers.nets.deformable import SDfConv2d, Shared, Window
from trainers.nets.pyramids import ASPP, DSPP, SPP, Activation, relu, unit
from trainers.nets.validity import enlarge
from trainers.road.choices import CONTEXTS


@dataclass(frozen=True)
class Wiring:
    """How context modules are put together; the same for every name."""

    strides: tuple[int, int] = (16, 8)
    """Output strides of the first module and of the second one of an extended context."""
    validity: str = "implicit"
    """Of the paths of a DSPP: implicit, gate or gate+guide."""
    skip: bool = True
    """The second module sees the encoder's features at its own stride, too."""
    share: bool = False
    """The second DSPP has the kernels of the first."""
    activation: Activation = relu
    tied: bool = True
    """The paths of a DSPP share their kernels; if not, each learns alone, to compare."""
    at_once: bool = False
    """The paths of a DSPP are computed in threads of their own."""

    def __post_init__(self) -> None:
        """Refuse strides that do not fall."""
        first, second = self.strides
        if second >= first or first % second:
            raise UsageError(
                f"strides={self.strides} of a context - allowed: a second one that is smaller and "
                "divides the first - do: take (16, 8)"
            )

    @property
    def factor(self) -> int:
        """Return how much the first module's output is enlarged for the second."""
        return self.strides[0] // self.strides[1]


class Context(nn.Module):
    """One context module, or two in series with the upsampling between them.

    Args:
        name: one of ``CONTEXTS``.
        channels: of the encoder at the first stride, and of the output.
        fine: channels of the encoder at the second stride.
        wiring: how modules are put together.
    """

    def __init__(self, name: str, channels: int, fine: int, wiring: Wiring = Wiring()) -> None:
        super().__init__()
        if name not in CONTEXTS:
            known = ", ".join(CONTEXTS)
            raise UsageError(
                f"module={name}{closest(name, CONTEXTS)} - allowed: {known} - do: name one of them"
            )
        kind, *extended = name.split("_")
        count = 2 if "dup" in extended else 1
        self.factor = wiring.factor if extended else 1
        self.coarse, shared = stack(kind, channels, wiring.strides[0], count, wiring)
        self.fine = self.project = self.join = None
        if extended:
            self.fine, _ = stack(
                kind, channels, wiring.strides[1], count, wiring, shared if wiring.share else None
            )
            if wiring.skip:
                act = wiring.activation
                narrow = nn.Conv2d(fine, channels, 1, bias=False)
                joint = nn.Conv2d(2 * channels, channels, 1, bias=False)
                self.project, self.join = unit(narrow, channels, act), unit(joint, channels, act)

    def forward(self, coarse_BCHW: Tensor, fine_BCHW: Tensor) -> Tensor:
        """Return the context of features at the two strides, at the finer one if extended."""
        y_BCHW: Tensor = self.coarse(coarse_BCHW)
        if self.fine is None:
            return y_BCHW
        y_BCHW = enlarge(y_BCHW, self.factor, fine_BCHW.shape[2:])
        if self.project is not None and self.join is not None:
            y_BCHW = self.join(torch.cat([y_BCHW, self.project(fine_BCHW)], 1))
        return self.fine(y_BCHW)  # type: ignore[no-any-return]


def stack(
    kind: str, channels: int, stride: int, count: int, wiring: Wiring, shared: Shared | None = None
) -> tuple[nn.Module, Shared | None]:
    """Return modules of a kind in series, and the kernels of the first one if it shares any."""
    modules = []
    for number in range(count):
        modules.append(context_module(kind, channels, stride, wiring, None if number else shared))
    first = modules[0]
    return nn.Sequential(*modules), first.shared if isinstance(first, DSPP) else None


def context_module(
    kind: str,
    channels: int,
    stride: int = 16,
    wiring: Wiring = Wiring(),
    shared: Shared | None = None,
) -> nn.Module:
    """Return one module, C to C channels: conv, df, sdf, spp, aspp or dspp."""
    act, size = wiring.activation, Window()
    if kind == "conv":
        return unit(size.conv(channels, channels), channels, act)
    if kind in ("df", "sdf"):
        squeeze = None if kind == "df" else "kernel"
        return unit(SDfConv2d(channels, channels, size, squeeze), channels, act)
    if kind == "spp":
        return SPP(channels, act)
    if kind == "aspp":
        return ASPP(channels, stride, act)
    pyramid = DSPP(channels, stride, mode=wiring.validity, activation=act, shared=shared)
    pyramid.at_once = wiring.at_once
    return pyramid if wiring.tied else pyramid.untie()

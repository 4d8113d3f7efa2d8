"""Context modules: pyramids that read a feature map at several sizes at once, C to C channels.

Sources: KR 10-2023-0017679 (deformable spatial pyramid pooling, DSPP: claims 1 to 9, figures 5 to
7), PSPNet (Zhao et al., 2017; SPP), DeepLabv3+ (Chen et al., 2018; ASPP, depthwise separable).

Shape legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from dlplatform.errors import UsageError
from trainers.blocks.classify import logits
from trainers.nets import validity
from trainers.nets.deformable import (
    Parts,
    SDfConv2d,
    Shared,
    Window,
    shared_kernels,
    squeezed_channels,
)
from trainers.nets.inception import Made, threads

Activation = Callable[[int], nn.Module]
COARSEST = 64
"""Features of this stride or a larger one are too abstract to guide offsets (paragraph 145)."""
GRIDS = (1, 2, 3, 6)
RATES = (6, 12, 18)
"""At output stride 16; twice as much at 8."""


def relu(channels: int) -> nn.Module:
    """Return the activation of most hosts."""
    return nn.ReLU(inplace=True)


def unit(conv: nn.Module, out: int, activation: Activation = relu) -> nn.Sequential:
    """Return a layer with a normalisation and an activation behind it."""
    return nn.Sequential(conv, nn.BatchNorm2d(out), activation(out))


def fuse(branches: int, channels: int, activation: Activation) -> nn.Sequential:
    """Return the 1x1 convolution that brings concatenated branches back to C channels."""
    return unit(nn.Conv2d(branches * channels, channels, 1, bias=False), channels, activation)


def pooled(x_BCHW: Tensor, pool: int) -> Tensor:
    """Return a map as a path sees it: means of squares of ``pool`` pixels."""
    return functional.avg_pool2d(x_BCHW, pool, ceil_mode=True) if pool > 1 else x_BCHW


def paths_at(stride: int) -> tuple[int, ...]:
    """Return the poolings a DSPP may have at an output stride: 1 and 2 at 16; 1, 2 and 4 at 8."""
    return tuple(pool for pool in (1, 2, 4) if stride * pool < COARSEST)


class DSPP(nn.Module):
    """Deformable spatial pyramid pooling: parallel paths that share all kernels but the squeeze.

    Each path pools the input by its factor, squeezes, samples at its own offsets, convolves and
    enlarges; a 1x1 convolution joins them. Nothing goes around the module (paragraph 129).
    Where the mode judges offsets, ``diagnostics`` has what the last input said about them.
    ``at_once`` computes each path in a thread of its own.

    Args:
        channels: of input and output.
        stride: output stride of the input; with any pooling it must stay below 64.
        pools: of the paths, by default all that the stride allows.
        mode: implicit (only what is shared decides), gate or gate+guide.
        activation: makes the host's activation.
        shared: kernels that another module has, too.
    """

    def __init__(
        self,
        channels: int,
        stride: int = 16,
        pools: tuple[int, ...] = (),
        mode: str = "implicit",
        activation: Activation = relu,
        shared: Shared | None = None,
    ) -> None:
        super().__init__()
        self.pools = pools or paths_at(stride)
        for pool in self.pools:
            if stride * pool >= COARSEST:
                raise UsageError(
                    f"DSPP path pooled by {pool} at output stride {stride}: features at 1/"
                    f"{stride * pool} - allowed: above 1/{COARSEST} - do: leave the path out"
                )
        if mode not in validity.MODES:
            raise UsageError(
                f"validity={mode} - allowed: {', '.join(validity.MODES)} - do: name one of them"
            )
        self.mode, self.window = mode, Window()
        width = squeezed_channels(channels, self.window, "kernel")
        self.shared = shared or shared_kernels(channels, width, channels, self.window)
        self.paths = nn.ModuleList(
            SDfConv2d(channels, channels, self.window, shared=self.shared) for _ in self.pools
        )
        self.after = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(channels), activation(channels)) for _ in self.pools
        )
        self.fuse = fuse(len(self.pools), channels, activation)
        self.at_once = False
        self.guide: Tensor | None = None
        self.diagnostics: dict[str, Tensor] = {}

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return y_BCHW."""
        if self.mode == "implicit":  # without the samples, which the other modes must keep
            return self._join(self._each(SDfConv2d.__call__, x_BCHW), x_BCHW)
        parts, judged = self._judged(x_BCHW)
        self.diagnostics = validity.diagnose(judged, self.pools)
        if self.mode == "gate+guide" and self.training:
            self.guide = validity.guidance(judged)
        return self._join([part.y_BOHW for part in parts], x_BCHW, judged.weight_PBHW)

    def pooled(self, x_BCHW: Tensor) -> Iterator[Tensor]:
        """Yield what each path sees."""
        for pool in self.pools:
            yield pooled(x_BCHW, pool)

    def untie(self) -> DSPP:
        """Give each path but the first its own copy of the shared kernels; return the module.

        That is what the patent's module is compared with: paths that learn alone.
        """
        for path in self.paths[1:]:
            path.offset, path.feature = copy.deepcopy((path.offset, path.feature))
        return self

    def take_guide(self) -> Tensor | None:
        """Return the guide's loss of the last forward pass in training, and forget it."""
        guide, self.guide = self.guide, None
        return guide

    @torch.no_grad()
    def inspect(self, x_BCHW: Tensor) -> dict[str, Tensor]:
        """Return what an input says about the offsets, in any mode."""
        return validity.diagnose(self._judged(x_BCHW)[1], self.pools)

    def _judged(self, x_BCHW: Tensor) -> tuple[list[Parts], validity.Judgement]:
        parts = self._each(SDfConv2d.parts, x_BCHW)
        return parts, validity.judge(parts, self.pools, self.window)

    def _each(self, way: Callable[[SDfConv2d, Tensor], Made], x_BCHW: Tensor) -> list[Made]:
        def run(path: nn.Module, pool: int, x_BCHW: Tensor) -> Made:
            return way(cast(SDfConv2d, path), pooled(x_BCHW, pool))

        branches = [partial(run, *of) for of in zip(self.paths, self.pools, strict=True)]
        return threads(branches, x_BCHW) if self.at_once else [one(x_BCHW) for one in branches]

    def _join(
        self, found: Sequence[Tensor], x_BCHW: Tensor, weight_PBHW: Tensor | None = None
    ) -> Tensor:
        results = [
            validity.enlarge(after(y_BCHW), pool, x_BCHW.shape[2:])
            for after, y_BCHW, pool in zip(self.after, found, self.pools, strict=True)
        ]
        if weight_PBHW is not None:
            results = [y * w[:, None] for y, w in zip(results, weight_PBHW, strict=True)]
        joined: Tensor = self.fuse(torch.cat(results, 1))
        return joined


class SPP(nn.Module):
    """Spatial pyramid pooling as the patent compares it: pooled branches without convolutions."""

    def __init__(self, channels: int, activation: Activation = relu) -> None:
        super().__init__()
        self.fuse = fuse(1 + len(GRIDS), channels, activation)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return y_BCHW."""
        return self.fuse(torch.cat([x_BCHW, *self.pooled(x_BCHW)], 1))  # type: ignore[no-any-return]

    def pooled(self, x_BCHW: Tensor) -> Iterator[Tensor]:
        """Yield the means of the cells of each grid, enlarged to the map's size."""
        for grid in GRIDS:
            means_BCHW = functional.adaptive_avg_pool2d(x_BCHW, grid)
            yield functional.interpolate(means_BCHW, x_BCHW.shape[2:], mode="bilinear")


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: three dilated depthwise separable branches, 1x1, the mean.

    Args:
        channels: of input and output.
        stride: output stride of the input, 16 or 8; it sets the dilations.
        activation: makes the host's activation.
    """

    def __init__(self, channels: int, stride: int = 16, activation: Activation = relu) -> None:
        super().__init__()
        point = [nn.Conv2d(channels, channels, 1, bias=False) for _ in range(5)]
        atrous = [
            nn.Conv2d(channels, channels, 3, 1, rate, rate, channels, bias=False)
            for rate in (16 * rate // stride for rate in RATES)
        ]
        branches = [nn.Sequential(depth, one) for depth, one in zip(atrous, point, strict=False)]
        self.branches = nn.ModuleList(
            unit(branch, channels, activation) for branch in [*branches, point[3]]
        )
        # The mean of one picture has no batch statistics; it goes without a normalisation.
        self.mean = nn.Sequential(nn.AdaptiveAvgPool2d(1), point[4], activation(channels))
        self.fuse = fuse(5, channels, activation)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return y_BCHW."""
        mean_BCHW = self.mean(x_BCHW).expand_as(x_BCHW)
        return self.fuse(torch.cat([*(b(x_BCHW) for b in self.branches), mean_BCHW], 1))  # type: ignore[no-any-return]


def take_guides(net: nn.Module) -> list[Tensor]:
    """Return the guides' losses of all DSPPs for the last forward pass, and forget them."""
    taken = [layer.take_guide() for layer in net.modules() if isinstance(layer, DSPP)]
    return [guide for guide in taken if guide is not None]


@torch.no_grad()
def inspect(net: nn.Module, x_BCHW: Tensor) -> dict[str, float]:
    """Return what all DSPPs of a network say about their offsets for an input, on average.

    Empty for a network without one. The input goes to where the network is.
    """
    seen: list[dict[str, Tensor]] = []
    layers = [layer for layer in net.modules() if isinstance(layer, DSPP)]
    if not layers:
        return {}

    def look(layer: nn.Module, inputs: tuple[Tensor]) -> None:
        seen.append(cast(DSPP, layer).inspect(*inputs))

    hooks = [layer.register_forward_pre_hook(look) for layer in layers]
    try:
        logits(net, x_BCHW)
    finally:
        for hook in hooks:
            hook.remove()
    names = [name for name in seen[0] if all(name in said for said in seen)]
    return {name: float(torch.stack([said[name] for said in seen]).mean()) for name in names}

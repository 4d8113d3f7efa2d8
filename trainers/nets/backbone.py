"""What nets have in common that name what is in a picture: a row of named layers, and a head.

Other nets (detectors, segmentation, style) take their named layers and leave the head.

Shape legend: B batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator

from torch import Tensor, nn


class Backbone(nn.Module):
    """A row of named ``layers`` that ends in a ``head``; logits_BK of x_BCHW.

    ``channels`` and ``strides`` say what the named layers return: maps of so many channels, with
    one value for so many pixels along each side. ``inputs`` is done to pictures first: nothing,
    unless it is set.
    """

    inputs: nn.Module
    layers: nn.Sequential
    head: nn.Module
    channels: dict[str, int]
    strides: dict[str, int]

    def __init__(self) -> None:
        """Begin without layers."""
        super().__init__()
        self.inputs = nn.Identity()

    def features(self, x_BCHW: Tensor, *names: str) -> dict[str, Tensor]:
        """Return the maps of some named layers (default: the last); the head is not run.

        Raises:
            ValueError: when there is no layer of such a name.
        """
        wanted = set(names) or {list(self.channels)[-1]}
        if unknown := wanted - set(self.channels):
            raise ValueError(f"no layers {sorted(unknown)} - allowed: {', '.join(self.channels)}")
        found, x_BCHW = {}, self.inputs(x_BCHW)
        for name, layer in self.layers.named_children():
            x_BCHW = layer(x_BCHW)
            if name in wanted:
                found[name] = x_BCHW
            if len(found) == len(wanted):
                break
        return found

    def units(self) -> list[nn.Module]:
        """Return the parts that follow one another, where a pipeline may be cut."""
        first, *others = self.parts()
        return [nn.Sequential(self.inputs, first), *others, self.head]

    def parts(self) -> list[nn.Module]:
        """Return the layers in the portions that a pipeline may move about."""
        return list(self.layers)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return logits_BK."""
        logits_BK: Tensor = self.head(self.layers(self.inputs(x_BCHW)))
        return logits_BK


class Centred(nn.Module):
    """Pictures in [0, 1] without their mean colour, four times as strong.

    The published nets took the mean colour of the set off; where colours say nothing about the
    class, those of each picture hide what does.
    """

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the pictures about zero."""
        return (x_BCHW - x_BCHW.mean((2, 3), keepdim=True)) * 4


def named(parts: Iterable[tuple[str, nn.Module]]) -> nn.Sequential:
    """Return modules as a row with their names."""
    return nn.Sequential(OrderedDict(parts))


def scaled(channels: Iterable[int], width: float) -> Iterator[int]:
    """Yield numbers of channels times a width, each at least 2."""
    return (max(2, round(count * width)) for count in channels)

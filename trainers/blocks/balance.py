"""Cut a row of layers into stages that cost about the same.

Shape legend: B batch, T time, C channels, H height, W width.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dlplatform.errors import UsageError


@torch.no_grad()
def multiply_adds(units: Sequence[nn.Module], x: Tensor) -> list[int]:
    """Return what each of some units that follow one another multiplies and adds for input x.

    Counts convolutions, linear layers and LSTMs; the units stay as they are.
    """
    costs = []
    for unit in units:
        counted: list[int] = []
        judged = copy.deepcopy(unit).eval()
        for layer in judged.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear | nn.LSTM):
                layer.register_forward_hook(lambda *call, seen=counted: seen.append(_cost(*call)))
        x = judged(x)
        costs.append(sum(counted))
    return costs


def _cost(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> int:
    weights = sum(p.numel() for p in layer.parameters() if p.dim() > 1)
    if isinstance(layer, nn.LSTM):  # every weight once for each step of each sample
        return weights * int(inputs[0].numel() // inputs[0].shape[-1])
    outputs = layer.out_channels if isinstance(layer, nn.Conv2d) else output.shape[-1]
    return weights * int(output.numel() // outputs)


def balanced(costs: Sequence[int], count: int) -> list[slice]:
    """Return ``count`` neighbouring slices whose largest sum of costs is smallest."""
    borders = itertools.combinations(range(1, len(costs)), count - 1)

    def slices(inner: Sequence[int]) -> list[slice]:
        ends = [0, *inner, len(costs)]
        return [slice(a, b) for a, b in itertools.pairwise(ends)]

    return min(map(slices, borders), key=lambda cut: max(sum(costs[part]) for part in cut))


def stages(units: Sequence[nn.Module], x: Tensor, count: int) -> list[nn.Module]:
    """Return the units as ``count`` stages, each a row of them, balanced by multiply-adds.

    Raises:
        UsageError: when there are fewer units than stages.
    """
    if count > len(units):
        raise UsageError(
            f"stages={count} of a network with {len(units)} places to cut between - allowed: 1 to "
            f"{len(units)} - do: stages={len(units)}, or a deeper network"
        )
    parts = balanced(multiply_adds(units, x), count)
    return [nn.Sequential(*units[part]) for part in parts]

"""Max pooling through the channels: torch's values and gradients, to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from trainers.nets.convnet import MaxPool2d

KINDS: list[dict[str, Any]] = [
    {"kernel_size": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 3, "stride": 1, "padding": 1},
    {"kernel_size": 3, "stride": 2, "ceil_mode": True},
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(2, 5, 9, 12), (1, 16, 8, 8), (3, 1, 7, 7)])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients_are_those_of_torch(
    kind: dict[str, Any], shape: tuple[int, ...], order: torch.memory_format
) -> None:
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(1)).round(decimals=1)
    drawn[0, 0, 0, 0] = torch.nan
    found = []
    for pool in (MaxPool2d(**kind), nn.MaxPool2d(**kind)):
        x_BCHW = drawn.contiguous(memory_format=order).requires_grad_()
        y_BCHW = pool(x_BCHW)
        weight = torch.arange(y_BCHW.numel(), dtype=torch.float32).view(y_BCHW.shape)
        y_BCHW.backward(weight)
        assert x_BCHW.grad is not None
        found.append((y_BCHW.detach(), x_BCHW.grad, y_BCHW.is_contiguous()))
    (mine, gradient, lies), (theirs, wanted, usual) = found
    torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(gradient, wanted) and lies == usual  # rounded values are often equal


def test_it_looks_along_the_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, usual = list[bool](), nn.MaxPool2d.forward

    def watched(self: nn.MaxPool2d, x_BCHW: torch.Tensor) -> torch.Tensor:
        seen.append(x_BCHW.is_contiguous(memory_format=torch.channels_last))
        return usual(self, x_BCHW)

    monkeypatch.setattr(nn.MaxPool2d, "forward", watched)
    MaxPool2d(2)(torch.zeros(2, 5, 8, 8))
    assert seen == [True]

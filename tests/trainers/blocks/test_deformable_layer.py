"""Squeezed deformable convolution: what it moves, what it learns, and what it costs.

Shape legend: B batch, C channels, D squeezed channels, O output channels, K positions of the
kernel, H height, W width.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.nets.deformable import (
    SDfConv2d,
    Window,
    offset_parameters,
    set_offsets,
    squeezed_channels,
)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def wandering(layer: SDfConv2d, size: float = 0.3) -> SDfConv2d:
    """Give a layer offsets that are not zero."""
    nn.init.normal_(layer.offset.weight, std=size)
    nn.init.normal_(layer.offset.bias, std=size)
    return layer


def weights(module: nn.Module) -> int:
    """Count the kernels' values: without biases and normalisations."""
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize(
    ("channels", "out", "side"), [(1, 1, 1), (5, 7, 3), (20, 4, 5), (60, 3, 7)]
)
def test_it_stands_in_for_any_convolution_of_odd_side(channels: int, out: int, side: int) -> None:
    x_BCHW = torch.randn(2, channels, 9, 11)
    assert SDfConv2d(channels, out, Window(side))(x_BCHW).shape == (2, out, 9, 11)


@pytest.mark.parametrize(
    "window", [Window(3, stride=2), Window(3, dilation=2), Window(3, padding=0)]
)
def test_stride_dilation_and_padding_are_those_of_a_convolution(window: Window) -> None:
    x_BCHW = torch.randn(2, 18, 9, 12)
    layer = SDfConv2d(18, 4, window).eval()
    assert layer(x_BCHW).shape == window.conv(18, 4)(x_BCHW).shape
    torch.testing.assert_close(layer(x_BCHW), unmoved(layer, x_BCHW))


def unmoved(layer: SDfConv2d, x_BCHW: Tensor) -> Tensor:
    """Return what squeeze and an ordinary convolution with the layer's kernel make of an input."""
    window, squeezed_BDHW = layer.window, layer.squeeze(x_BCHW)
    weight = layer.feature.weight.view(-1, squeezed_BDHW.shape[1], window.side, window.side)
    return functional.conv2d(
        squeezed_BDHW, weight, None, window.stride, window.edge, window.dilation
    )


def test_channels_are_divided_by_the_size_of_the_kernel() -> None:
    assert squeezed_channels(384, Window(3), "kernel") == 42
    assert squeezed_channels(5, Window(3), "kernel") == 1
    assert squeezed_channels(384, Window(3), None) == 384
    assert squeezed_channels(384, Window(3), 17) == 17


def test_offsets_come_from_the_whole_input_and_samples_from_the_squeezed_one() -> None:
    parts = SDfConv2d(36, 36, Window(3)).parts(torch.randn(2, 36, 6, 8))
    layer = SDfConv2d(36, 36, Window(5))
    assert layer.offset.in_channels == 36 and layer.offset.out_channels == 2 * 25
    assert parts.offset_B2KHW.shape == (2, 18, 6, 8)  # one field for all channels
    assert parts.squeezed_BDHW.shape == (2, 4, 6, 8)
    assert parts.cols_BDKHW.shape == (2, 4, 9, 6, 8)
    assert parts.cols_BDKHW[0].numel() <= 36 * 6 * 8
    assert parts.y_BOHW.shape == (2, 36, 6, 8)


def test_one_offset_field_moves_all_channels_alike() -> None:
    layer = wandering(SDfConv2d(18, 2, squeeze=None))
    x_BCHW = torch.randn(1, 1, 7, 7).expand(1, 18, 7, 7)
    cols_BDKHW = layer.parts(x_BCHW).cols_BDKHW
    torch.testing.assert_close(cols_BDKHW, cols_BDKHW[:, :1].expand_as(cols_BDKHW))


def test_at_the_start_it_is_an_ordinary_convolution_of_the_squeezed_input() -> None:
    layer = SDfConv2d(36, 10)
    x_BCHW = torch.randn(2, 36, 8, 9)
    parts = layer.parts(x_BCHW)
    assert not parts.offset_B2KHW.any()
    unfolded = functional.unfold(parts.squeezed_BDHW, 3, padding=1).view_as(parts.cols_BDKHW)
    assert torch.equal(parts.cols_BDKHW, unfolded)
    torch.testing.assert_close(layer.eval()(x_BCHW), unmoved(layer, x_BCHW))


def test_training_teaches_offsets_squeeze_and_kernel() -> None:
    layer = wandering(SDfConv2d(36, 10))
    layer(torch.randn(2, 36, 8, 9)).square().sum().backward()
    for part in (
        layer.offset.weight,
        layer.offset.bias,
        layer.squeeze[0].weight,
        layer.feature.weight,
    ):
        assert part.grad is not None and part.grad.abs().sum() > 0


def test_the_rate_of_offsets_scales_their_gradient_alone() -> None:
    x_BCHW = torch.randn(2, 18, 6, 6)
    layer = wandering(SDfConv2d(18, 4))
    found = []
    for layer.rate in (1.0, 0.1):
        layer.zero_grad()
        y_BOHW = layer(x_BCHW)
        y_BOHW.square().sum().backward()
        found.append((y_BOHW, layer.offset.weight.grad.clone(), layer.feature.weight.grad.clone()))
    (y, offset, feature), (same, tenth, as_before) = found
    torch.testing.assert_close(same, y)
    torch.testing.assert_close(tenth, 0.1 * offset)
    torch.testing.assert_close(as_before, feature)


def test_whole_offsets_read_one_pixel_each_and_nothing_outside() -> None:
    layer = wandering(SDfConv2d(18, 4), size=1.0)
    set_offsets(layer.eval(), "integer")
    parts = layer.parts(torch.randn(1, 18, 5, 6))
    rounded = parts.offset_B2KHW.round().long().view(9, 2, 5, 6)
    read = parts.cols_BDKHW[0]
    outside = 0
    for k in range(9):
        for y in range(5):
            for x in range(6):
                row = y + k // 3 - 1 + int(rounded[k, 0, y, x])
                column = x + k % 3 - 1 + int(rounded[k, 1, y, x])
                inside = 0 <= row < 5 and 0 <= column < 6
                outside += not inside
                wanted = parts.squeezed_BDHW[0, :, row, column] if inside else torch.zeros(2)
                assert torch.equal(read[:, k, y, x], wanted)
    assert outside > 0
    assert (parts.offset_B2KHW - parts.offset_B2KHW.round()).abs().max() <= 0.5


def test_whole_offsets_that_are_whole_change_nothing() -> None:
    layer = SDfConv2d(18, 4).eval()
    layer.offset.bias.data = torch.randint(-2, 3, (18,)).float()
    x_BCHW = torch.randn(2, 18, 6, 7)
    real_BOHW = layer(x_BCHW)
    set_offsets(layer, "integer")
    torch.testing.assert_close(layer(x_BCHW), real_BOHW, rtol=0, atol=1e-6)


def test_integer_mode_is_for_inference_and_leaves_training_as_it_is() -> None:
    layer = wandering(SDfConv2d(18, 4))
    x_BCHW = torch.randn(2, 18, 6, 7)
    set_offsets(layer, "integer")
    assert not layer.train().rounds(x_BCHW) and layer.eval().rounds(x_BCHW)
    layer.train()(x_BCHW).sum().backward()
    assert layer.offset.weight.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="offsets=whole - allowed: real, integer, auto, tuned"):
        set_offsets(layer, "whole")


def test_auto_rounds_above_the_budget_only() -> None:
    layer = SDfConv2d(384, 384).eval()
    x_BCHW = torch.empty(1, 384, 48, 48, device="meta")
    needed = layer.temporary(x_BCHW)
    assert needed == 4 * 9 * 42 * 48 * 48 * 4  # 13.29 MiB: corners, positions, channels, map, fp32
    assert layer.temporary(x_BCHW, integer=True) * 4 == needed
    for budget, rounds in ((needed, False), (needed - 1, True)):
        set_offsets(layer, "auto", budget)
        assert layer.rounds(x_BCHW) is rounds
        assert not layer.train().rounds(x_BCHW)
        layer.eval()


def test_tuned_offsets_stand_still_bitwise_under_momentum_and_decay() -> None:
    net = nn.Sequential(wandering(SDfConv2d(18, 18)), wandering(SDfConv2d(18, 4)))
    assert set_offsets(net, "tuned") == 2
    still = {p: p.detach().clone() for p in offset_parameters(net)}
    before = net[0].feature.weight.detach().clone()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        net.train()(torch.randn(2, 18, 6, 6)).square().mean().backward()
        optimizer.step()
    assert len(still) == 4
    assert all(p.grad is None and torch.equal(p, was) for p, was in still.items())
    assert not torch.equal(net[0].feature.weight, before)


def test_rounding_is_reversible() -> None:
    net = nn.Sequential(wandering(SDfConv2d(18, 18)), nn.ReLU(), wandering(SDfConv2d(18, 4))).eval()
    x_BCHW = torch.randn(2, 18, 6, 6)
    real_BOHW = net(x_BCHW)
    assert set_offsets(net, "integer") == 2
    assert not torch.equal(net(x_BCHW), real_BOHW)
    set_offsets(net, "real")
    assert torch.equal(net(x_BCHW), real_BOHW)


def test_errors_of_rounding_add_up_over_layers() -> None:
    def error(layers: int, seed: int) -> float:
        torch.manual_seed(seed)
        net = nn.Sequential(*(wandering(SDfConv2d(18, 18), 0.1) for _ in range(layers))).eval()
        x_BCHW = torch.randn(2, 18, 12, 12)
        real_BOHW = net(x_BCHW)
        set_offsets(net, "integer")
        return float((net(x_BCHW) - real_BOHW).abs().mean() / real_BOHW.abs().mean())

    one, two, four = (sum(error(layers, seed) for seed in range(5)) / 5 for layers in (1, 2, 4))
    assert 0 < one < two < four


def test_kernels_are_as_small_as_the_patent_says() -> None:
    squeezed, plain = SDfConv2d(384, 384), SDfConv2d(384, 384, squeeze=None)
    assert weights(squeezed) == 223_488
    assert weights(plain) == 1_389_312
    assert weights(Window(3).conv(384, 384)) == 1_327_104
    assert weights(squeezed) <= 0.2 * 1_327_104  # per pixel also its multiplications
    assert (
        weights(SDfConv2d(384, 384, normed=False))
        == sum(p.numel() for p in SDfConv2d(384, 384, normed=False).parameters()) - 18
    )  # the offsets' bias


def test_temporary_maps_are_ordered_as_in_the_patent() -> None:
    x_BCHW = torch.empty(1, 384, 48, 48, device="meta")
    squeezed, plain = SDfConv2d(384, 384), SDfConv2d(384, 384, squeeze=None)
    convolution = x_BCHW.nbytes  # what an ordinary convolution samples: the map itself
    assert plain.temporary(x_BCHW) == 36 * convolution
    assert squeezed.temporary(x_BCHW, integer=True) <= squeezed.temporary(x_BCHW)
    assert squeezed.temporary(x_BCHW) < plain.temporary(x_BCHW) / 9
    assert squeezed.temporary(x_BCHW, integer=True) <= 1.2 * convolution


@pytest.mark.slow
def test_it_follows_a_warp_that_convolutions_of_as_many_weights_cannot() -> None:
    """The input is a pattern moved by a field that it shows, too; the target is not moved."""
    conv = Window(3).conv
    moving = nn.Sequential(conv(3, 18), nn.ReLU(), SDfConv2d(18, 1, squeeze=2))
    plain = nn.Sequential(conv(3, 18), nn.ReLU(), conv(18, 18), nn.ReLU(), conv(18, 1))
    sizes = [sum(p.numel() for p in net.parameters()) for net in (moving, plain)]
    assert sizes[0] <= sizes[1] <= 1.05 * sizes[0]
    errors = []
    for net in (moving, plain):
        optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
        for number in range(300):
            x_BCHW, target_B1HW = warped(number)
            optimizer.zero_grad()
            functional.mse_loss(net(x_BCHW), target_B1HW).backward()
            optimizer.step()
        with torch.no_grad():
            x_BCHW, target_B1HW = warped(10_000, 64)
            errors.append(float(functional.mse_loss(net.eval()(x_BCHW), target_B1HW)))
    assert errors[0] <= 0.5 * errors[1], errors


def warped(number: int, count: int = 8) -> tuple[Tensor, Tensor]:
    """Return (picture and its displacement field, unwarped picture after a fixed kernel)."""
    draw = torch.Generator().manual_seed(number)
    base = functional.interpolate(
        torch.randn(count, 1, 12, 12, generator=draw), scale_factor=2, mode="bilinear"
    )
    field = 3 * functional.interpolate(
        torch.rand(count, 2, 3, 3, generator=draw) * 2 - 1, size=(24, 24), mode="bilinear",
        align_corners=True,
    )  # fmt: skip
    axis = (torch.arange(24.0) + 0.5) / 12 - 1
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij")[::-1], -1)
    moved = functional.grid_sample(
        base, grid + field.flip(1).movedim(1, -1) / 12, align_corners=False
    )
    kernel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])[None, None] / 4
    return torch.cat([moved, field / 3], 1), functional.conv2d(base, kernel, padding=1)

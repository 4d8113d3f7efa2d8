"""The bench of figure 8: multiplications to the digit printed, memory in the order printed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainers.nets.deformable import set_offsets
from trainers.road.bench import (
    CHANNELS,
    FIGURE_8,
    MODULES,
    SIDES,
    Memory,
    bench_network,
    count_multiplications,
    infer,
    train_once,
    weigh,
)
from trainers.road.contexts import context_module

EXACT = {"conv": 1_327_104, "spp": 737_280, "df": 1_389_312, "sdf": 223_488}


@pytest.fixture(scope="module")
def memories() -> dict[tuple[int, str, str], Memory]:
    """Weigh every module at both strides, with real and with whole offsets."""
    found = {}
    for stride, side in SIDES.items():
        for name in MODULES:
            net = bench_network(name, stride)
            found[stride, name, "real"] = weigh(net, side, fused=False)
            if set_offsets(net, "tuned"):
                found[stride, name, "whole"] = weigh(net, side, fused=False)
    return found


@pytest.mark.parametrize(("stride", "name"), FIGURE_8)
def test_multiplications_are_those_of_figure_8(stride: int, name: str) -> None:
    side = SIDES[stride]
    count = count_multiplications(context_module(name, CHANNELS, stride), side, side)
    assert round(count / 2**30, 1) == FIGURE_8[stride, name].multiplications
    each = {"dspp": 574_272 if stride == 16 else 735_696, **EXACT}
    if name in each:  # ASPP's branch of the mean is left out of the patent's count
        assert count == each[name] * side * side
    else:
        assert count - CHANNELS**2 == 1_337_472 * side * side


def test_squeezing_saves_four_multiplications_of_five() -> None:
    counts = [count_multiplications(context_module(n, 384), 48, 48) for n in ("sdf", "conv")]
    assert counts[0] <= 0.2 * counts[1]


@pytest.mark.parametrize("stride", SIDES)
@pytest.mark.parametrize("phase", ["training", "inference"])
def test_memory_of_single_layers_is_ordered_as_printed(
    memories: dict[tuple[int, str, str], Memory], stride: int, phase: str
) -> None:
    used = {key[1:]: getattr(memory, phase) for key, memory in memories.items() if key[0] == stride}
    assert max(used, key=used.__getitem__) == ("df", "real")
    assert used["sdf", "whole"] < used["sdf", "real"] < used["df", "real"] / 4
    assert used["dspp", "whole"] < used["dspp", "real"]


def test_memory_of_modules_in_training_is_ordered_as_printed(
    memories: dict[tuple[int, str, str], Memory],
) -> None:
    used = {key: memory.training for key, memory in memories.items()}
    assert used[16, "spp", "real"] < used[16, "dspp", "real"] < used[16, "aspp", "real"]
    assert used[8, "dspp", "whole"] < used[8, "aspp", "real"] < used[8, "dspp", "real"]


def test_memory_of_modules_in_inference_is_ordered_as_printed_but_for_spp(
    memories: dict[tuple[int, str, str], Memory],
) -> None:
    """SPP holds its pooled maps at once, here; the patent's needs the least."""
    used = {key: memory.inference for key, memory in memories.items()}
    assert used[16, "dspp", "whole"] < used[16, "dspp", "real"] < used[16, "aspp", "real"]
    assert used[8, "dspp", "whole"] < used[8, "aspp", "real"]


def test_our_sampler_stores_no_corners() -> None:
    for name in ("sdf", "df"):
        net = bench_network(name, 16)
        fused, stored = weigh(net, 48), weigh(net, 48, fused=False)
        assert fused.training < stored.training and fused.inference < stored.inference
        set_offsets(net, "tuned")
        assert weigh(net, 48).training <= fused.training


@pytest.mark.parametrize("name", MODULES)
def test_the_bench_network_is_a_bare_module_between_two_1x1_convolutions(name: str) -> None:
    with torch.device("meta"):
        first, module, last = bench_network(name, 16)
    assert first.kernel_size == last.kernel_size == (1, 1)
    assert (first.in_channels, first.out_channels) == (3, 384)
    assert (last.in_channels, last.out_channels) == (384, 19)
    assert not any(isinstance(m, nn.BatchNorm2d | nn.ReLU | nn.PReLU) for m in module.modules())


def test_the_bench_network_learns_to_name_pixels() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = bench_network("dspp", 16)
    x_B3HW, labels_BHW = torch.randn(1, 3, 6, 6), torch.randint(19, (1, 6, 6))
    losses = [train_once(net, x_B3HW, labels_BHW, lr=0.01) for _ in range(4)]
    assert losses[-1] < losses[0]
    assert infer(net, x_B3HW).shape == (1, 6, 6)

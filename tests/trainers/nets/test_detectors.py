"""Nets of detectors: VoVNet as published, the pyramid, attention and heads, value by value."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from trainers.nets.attention import SpatialAttention
from trainers.nets.centermask import Body, CenterMask, Regions
from trainers.nets.convnet import parameter_count
from trainers.nets.fcos import HeadShape
from trainers.nets.fpn import FeaturePyramid
from trainers.nets.roi_heads import BINS, JointHead, MaskHead, StateHead
from trainers.nets.vovnet import SIZES, FrozenNorm, OneShot, VoVNet, Weighing


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.mark.parametrize("size", SIZES)
def test_every_size_has_the_published_stages(size: str) -> None:
    with torch.device("meta"):
        net = VoVNet(size)
        maps = net.features(torch.zeros(1, 3, 96, 64), *net.channels)
    plan = SIZES[size]
    assert [maps[f"stage{n}"].shape[1] for n in (2, 3, 4, 5)] == list(plan.outer)
    for name, map_BCHW in maps.items():
        stride = net.strides[name]
        assert map_BCHW.shape[2:] == (96 // stride, 64 // stride) and stride <= 32
    shots = [layer for layer in net.modules() if isinstance(layer, OneShot)]
    assert len(shots) == sum(plan.modules)
    assert all(len(shot.convs) == plan.convs for shot in shots)
    assert [shot.identity for shot in shots].count(False) == 4


def test_a_size_has_as_many_values_as_its_table_says() -> None:
    for size in ("19-slim", "39", "99"):
        plan, before = SIZES[size], SIZES[size].stem[-1]
        first, second, third = plan.stem
        count = 9 * (3 * first + first * second + second * third) + 2 * sum(plan.stem)
        for stage in range(4):
            inner, outer = plan.inner[stage], plan.outer[stage]
            for _ in range(plan.modules[stage]):
                count += 9 * inner * (before + (plan.convs - 1) * inner) + 2 * plan.convs * inner
                count += (before + plan.convs * inner) * outer + 2 * outer
                count, before = count + outer * (outer + 1), outer
        with torch.device("meta"):
            assert parameter_count(VoVNet(size)) == count


def test_a_module_joins_its_input_and_all_outputs() -> None:
    shot = OneShot((6, 4, 8), 3, "batch", identity=False).eval()
    x_BCHW = torch.randn(2, 6, 5, 7)
    found = [x_BCHW]
    for conv in shot.convs:
        found.append(conv(found[-1]))
    joined_BCHW = torch.cat(found, 1)
    assert joined_BCHW.shape[1] == 6 + 3 * 4
    assert torch.allclose(shot(x_BCHW), shot.weigh(shot.join(joined_BCHW)))
    same = OneShot((8, 4, 8), 3, "batch", identity=True).eval()
    y_BCHW = torch.randn(1, 8, 4, 4)
    without = same(y_BCHW) - y_BCHW
    same.identity = False
    assert torch.allclose(same(y_BCHW), without, atol=1e-6)


def test_channels_are_weighed_by_their_means() -> None:
    weigh = Weighing(2)
    with torch.no_grad():
        weigh.linear.weight.copy_(torch.eye(2)[..., None, None])
        weigh.linear.bias.zero_()
        x_BCHW = torch.tensor([1.0, -6.0]).view(1, 2, 1, 1).expand(1, 2, 3, 3)
        # relu6(1 + 3) / 6 and relu6(-6 + 3) / 6
        assert weigh(x_BCHW)[0, :, 0, 0].tolist() == pytest.approx([4 / 6, 0])


def test_depthwise_convolutions_and_frozen_norms() -> None:
    slim, dw = VoVNet("19-slim"), VoVNet("19-slim-dw")
    assert parameter_count(dw) < 0.6 * parameter_count(slim)
    frozen = VoVNet("19-slim-dw", "frozen")
    assert not any("running" in name for name, _ in frozen.named_parameters())
    norm, given = FrozenNorm(3), nn.BatchNorm2d(3).eval()
    for value in (given.weight, given.bias, given.running_mean):
        nn.init.normal_(value)  # type: ignore[arg-type]
    given.running_var.fill_(2.0)  # type: ignore[union-attr]
    state = {k: v for k, v in given.state_dict().items() if k != "num_batches_tracked"}
    norm.load_state_dict(state)
    x_BCHW = torch.randn(2, 3, 4, 4)
    assert torch.allclose(norm(x_BCHW), given(x_BCHW), atol=1e-5)
    with pytest.raises(ValueError, match="size 20"):
        VoVNet("20")


def test_the_pyramid_adds_what_is_above() -> None:
    pyramid = FeaturePyramid((3, 5), 4, extra=2)
    maps = [torch.randn(1, 3, 7, 6), torch.randn(1, 5, 4, 3)]
    found = pyramid(maps)
    assert [tuple(one.shape[1:]) for one in found] == [(4, 7, 6), (4, 4, 3), (4, 2, 2), (4, 1, 1)]
    above_BCHW = pyramid.lateral[1](maps[1])
    below_BCHW = pyramid.lateral[0](maps[0]) + functional.interpolate(above_BCHW, (7, 6))
    assert torch.allclose(found[0], pyramid.smooth[0](below_BCHW), atol=1e-6)
    assert torch.allclose(found[3], pyramid.coarser[1](found[2].relu()), atol=1e-6)


def test_attention_by_hand_and_without() -> None:
    attention = SpatialAttention()
    assert parameter_count(attention) == 18
    with torch.no_grad():
        attention.conv.weight.zero_()
        attention.conv.weight[0, :, 1, 1] = torch.tensor([1.0, -1.0])
        x_BCHW = torch.tensor([1.0, 3.0]).view(1, 2, 1, 1)
        # Mean 2 less the largest, 3, is -1.
        weight = float(torch.tensor(-1.0).sigmoid())
        assert attention(x_BCHW).flatten().tolist() == pytest.approx([weight, 3 * weight])
    on, off = (MaskHead(8, 2, 8, 2, attention=on) for on in (True, False))
    assert parameter_count(on) == parameter_count(off) + 18


@torch.no_grad()
def test_heads_of_regions_have_their_shapes() -> None:
    x_RCHW = torch.randn(3, 8, BINS, BINS)
    masks_RKHW = MaskHead(8, 2, 8, 2)(x_RCHW)
    joints_RJHW = JointHead(8, 17, 8, 4)(x_RCHW)
    assert masks_RKHW.shape == (3, 2, 28, 28) and joints_RJHW.shape == (3, 17, 56, 56)
    for inputs in (("box",), ("mask",), ("joints",), ("box", "mask", "joints")):
        head = StateHead(8, 17, 6, inputs, 8)
        parts = x_RCHW, masks_RKHW[:, :1].sigmoid(), joints_RJHW, torch.randn(3, 3 + 3 * 17)
        said_RS = head(*parts)
        assert said_RS.shape == (3, 6)
        for number, name in enumerate(("box", "mask", "joints")):
            changed = list(parts)
            changed[number] = changed[number] + 1 + changed[number].abs()
            same = torch.allclose(head(*changed), said_RS)
            assert same == (name not in inputs)


@torch.no_grad()
def test_full_sizes_answer_for_every_place() -> None:
    body = Body("39", "frozen")
    with torch.device("meta"):
        net = CenterMask(body, HeadShape(80), Regions(masks=True, joints=17))
        dense = net(torch.zeros(1, 3, 800, 1088))
    places = sum(-(-800 // s) * -(-1088 // s) for s in body.strides)
    assert body.strides == (8, 16, 32, 64, 128) and dense.logits_BNK.shape == (1, places, 80)

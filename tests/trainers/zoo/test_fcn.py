"""zoo/fcn: one pass gives what a pass for every pixel gave, at any size, and learns roads."""

from __future__ import annotations

import time

import pytest
import torch
from learning import trained
from torch import nn
from torch.nn import functional

from dlplatform.errors import UsageError
from trainers.nets.convnet import parameter_count
from trainers.nets.fcn import FCN, PatchNet, bilinear_up, convolutional
from trainers.nets.vgg import VGG, Head
from trainers.zoo.fcn import FullyConvolutional


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@torch.no_grad()
def test_one_forward_equals_a_forward_for_every_pixel() -> None:
    net, x_1CHW = PatchNet(6, width=4, hidden=8).eval(), torch.randn(1, 3, 17, 20)
    windows_1KHW = net.patchwise(x_1CHW)
    assert net.forwards == 17 * 20  # as many as there are pixels
    net.forwards = 0
    whole_1KHW = net(x_1CHW)
    assert net.forwards == 1
    assert whole_1KHW.shape == windows_1KHW.shape == (1, 6, 17, 20)
    assert float((whole_1KHW - windows_1KHW).abs().max()) < 1e-4
    assert float(whole_1KHW.std()) > 0.01


@torch.no_grad()
def test_convolutions_answer_what_the_linear_layers_did() -> None:
    vgg = VGG(11, 1 / 16, head=Head(5, hidden=12, side=96)).eval()
    x_1CHW = torch.randn(1, 3, 96, 96)
    map_1C33 = vgg.layers(x_1CHW)
    head = convolutional(vgg).eval()
    linear_1C = list(vgg.head.children())[:-1]
    expected_1C = nn.Sequential(*linear_1C)(map_1C33)
    assert torch.allclose(head(map_1C33)[..., 1, 1], expected_1C, atol=1e-5)
    assert head(torch.randn(1, 32, 7, 9)).shape == (1, 12, 7, 9)


@pytest.mark.parametrize("factor", [2, 4, 8, 16, 32])
@torch.no_grad()
def test_transposed_convolutions_begin_as_bilinear_interpolation(factor: int) -> None:
    map_BKHW = torch.randn(1, 3, 5, 6)
    grown = bilinear_up(3, factor)(map_BKHW)
    expected = functional.interpolate(map_BKHW, scale_factor=factor, mode="bilinear")
    inner = slice(factor // 2, -(factor // 2))  # beyond, interpolation repeats the last value
    assert grown.shape == expected.shape
    assert torch.allclose(grown[..., inner, inner], expected[..., inner, inner], atol=1e-5)


@pytest.mark.parametrize("net", ["8s", "16s", "32s", "patch"])
@pytest.mark.parametrize("size", [(64, 128), (33, 47), (96, 32)])
@torch.no_grad()
def test_answers_have_the_size_of_the_picture(net: str, size: tuple[int, int]) -> None:
    models = FullyConvolutional(net=net).models()
    assert models["net"].eval()(torch.randn(1, 3, *size)).shape == (1, 6, *size)


@torch.no_grad()
def test_finer_scores_begin_at_zero_and_are_from_the_layers_of_the_paper() -> None:
    nets = {
        skips: FCN(VGG(16, 1 / 16, head=Head(1, 16, 224)), 4, skips).eval() for skips in (0, 1, 2)
    }
    strides = {skips: net.last.stride[0] for skips, net in nets.items()}
    assert strides == {0: 32, 1: 16, 2: 8}
    assert [list(net.sides) for net in nets.values()] == [[], ["pool4"], ["pool4", "pool3"]]
    assert all(float(side.weight.abs().sum()) == 0 for side in nets[2].sides.values())
    assert nets[2].head[0].kernel_size == (7, 7)
    assert FCN(VGG(11, 1 / 16, head=Head(1, 16, 96)), 4, 2, fine=True).last.stride == (4, 4)


def test_the_full_net_has_the_size_of_the_paper() -> None:
    with torch.device("meta"):
        net = FullyConvolutional(
            depth=16, width=1.0, hidden=4096, side=224, fine=False, norm=False
        ).network(21)
    vgg = 138_357_544 - 1000 * 4097  # all of VGG-16 but the names of its classes
    scores, ups = 21 * (4097 + 513 + 257), 21 * (2 * 4 * 4 + 16 * 16)
    assert parameter_count(net) == vgg + scores + ups


def test_size_by_default() -> None:
    net = FullyConvolutional().models()["net"]
    assert parameter_count(net) == FullyConvolutional.parameters


@pytest.mark.parametrize(
    ("name", "value"),
    [("net", "4s"), ("depth", 12), ("width", 0.0), ("hidden", 0), ("side", 64), ("dropout", 1.0)],
)
def test_settings_that_cannot_work(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"task.{name}={value} cannot work - allowed: "):
        FullyConvolutional(**{name: value})  # type: ignore[arg-type]


@pytest.mark.slow
@torch.no_grad()
def test_one_pass_is_far_quicker_than_a_pass_for_every_pixel() -> None:
    net, x_1CHW = PatchNet(6).eval(), torch.randn(1, 3, 64, 64)
    net(x_1CHW)
    started = time.process_time()
    net.patchwise(x_1CHW)
    windows = time.process_time() - started
    started = time.process_time()
    for _ in range(5):
        net(x_1CHW)
    whole = (time.process_time() - started) / 5
    print(
        f"64 x 64 pixels: {windows:.2f} s in windows, {whole:.4f} s whole: {windows / whole:.0f}x"
    )
    assert windows > 20 * whole  # measured: 66 times


@pytest.mark.slow
def test_it_learns_roads_far_beyond_colour_and_place() -> None:
    task = FullyConvolutional(minibatches=100)
    scores, base = (
        task.score(trained(task, task.minibatches), task.batches("test")),
        task.baselines(),
    )
    assert scores["mIoU"] > max(0.55, *base.values()), (scores, base)
    assert scores["accuracy"] > 0.8 and scores["fwIoU"] > 0.7

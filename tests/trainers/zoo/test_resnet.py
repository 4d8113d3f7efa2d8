"""zoo/resnet: identity, shortcuts, plain twins, dilation, counts of the paper, and it learns."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

import pytest
import torch
from seldom import LONG
from torch import nn

from dlplatform.errors import UsageError
from dlplatform.task import Models
from trainers.nets.convnet import parameter_count
from trainers.nets.resnet import Residual, ResNet, Shape, Unit, residual_sizes
from trainers.zoo.resnet import ResnetPictures


@pytest.mark.parametrize(
    ("depth", "count"),
    [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032), (101, 44_549_160),
     (152, 60_192_808)],
)  # fmt: skip
def test_parameters_of_the_published_nets(depth: int, count: int) -> None:
    with torch.device("meta"):
        net = ResNet(Shape(depth))
    assert parameter_count(net) == count
    layers = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    projections = sum(len(m.projection) > 0 for m in net.modules() if isinstance(m, Residual))
    assert len(layers) - projections == depth


@pytest.mark.parametrize(("depth", "count"), [(20, 269_722), (56, 853_018), (110, 1_727_962)])
def test_parameters_of_the_small_nets(depth: int, count: int) -> None:
    with torch.device("meta"):
        assert parameter_count(ResNet(Shape(depth, small=True, shortcut="pad"), 10)) == count


@pytest.mark.parametrize("bottleneck", [False, True])
def test_a_block_returns_its_input_where_the_residual_is_zero(bottleneck: bool) -> None:
    net = ResNet(Shape(50 if bottleneck else 18, width=1 / 16, zero_gamma=True), classes=10)
    block = net.layers.layer1[1]
    x_BCHW = torch.randn(2, net.channels["layer1"], 8, 8)
    assert len(block.residual) == (8 if bottleneck else 5)
    assert torch.equal(block(x_BCHW), x_BCHW.relu())
    assert set(residual_sizes(net, torch.rand(1, 3, 64, 64)).values()) == {0.0}


def test_shortcuts_project_only_where_the_shape_changes() -> None:
    net = ResNet(Shape(34, width=1 / 8), classes=10)
    made = [[len(block.projection) > 0 for block in stage] for stage in list(net.layers)[1:]]
    assert made == [[False] * 3, [True] + [False] * 3, [True] + [False] * 5, [True] + [False] * 2]
    conv, norm = net.layers.layer2[0].projection
    assert conv.kernel_size == (1, 1) and conv.stride == (2, 2)
    assert isinstance(norm, nn.BatchNorm2d)
    wide = ResNet(Shape(50, width=1 / 8), classes=10)
    assert [len(block.projection) > 0 for block in wide.layers.layer1] == [True, False, False]


def test_padded_shortcuts_have_no_parameters() -> None:
    block = Residual(Unit(4, 8, stride=2, shortcut="pad"))
    x_BCHW = torch.rand(1, 4, 6, 6)
    kept_BCHW = block.shortcut(x_BCHW)
    assert torch.equal(kept_BCHW[:, :4], x_BCHW[:, :, ::2, ::2])
    assert kept_BCHW.shape == (1, 8, 3, 3) and not kept_BCHW[:, 4:].any()


def test_the_plain_twin_has_the_same_parameters_and_no_shortcuts() -> None:
    torch.manual_seed(0)
    residual = ResNet(Shape(20, small=True, width=0.5, shortcut="pad"), 10).eval()
    torch.manual_seed(0)
    plain = ResNet(Shape(20, small=True, width=0.5, shortcut="none"), 10).eval()
    own, twin = residual.state_dict(), plain.state_dict()
    assert own.keys() == twin.keys()
    assert all(torch.equal(own[name], twin[name]) for name in own)
    block, x_BCHW = plain.layers.layer1[0], torch.randn(1, 8, 6, 6)
    assert torch.equal(block(x_BCHW), block.residual(x_BCHW).relu())
    assert residual_sizes(plain, torch.rand(1, 3, 32, 32)) == {}


@pytest.mark.parametrize(
    ("output_stride", "strides", "dilations"),
    [(32, [4, 8, 16, 32], [1, 1, 1, 1]), (16, [4, 8, 16, 16], [1, 1, 1, 2]),
     (8, [4, 8, 8, 8], [1, 1, 2, 4])],
)  # fmt: skip
def test_dilation_keeps_the_size(
    output_stride: int, strides: list[int], dilations: list[int]
) -> None:
    with torch.device("meta"):
        net = ResNet(Shape(50, output_stride=output_stride))
        names = [f"layer{number}" for number in range(1, 5)]
        maps = net.features(torch.zeros(1, 3, 64, 96), *names)
    assert [64 // maps[name].shape[2] for name in names] == strides
    assert [96 // maps[name].shape[3] for name in names] == strides
    assert [net.strides[name] for name in names] == strides
    assert [net.channels[name] for name in names] == [256, 512, 1024, 2048]
    last = [getattr(net.layers, name)[-1].residual[3] for name in names]
    assert [conv.dilation[0] for conv in last] == dilations
    assert parameter_count(net) == 25_557_032


def test_dilated_and_strided_nets_agree_where_they_look() -> None:
    """The values of the strided net are every other one of the dilated net."""
    torch.manual_seed(0)
    strided = ResNet(Shape(18, width=1 / 8), 10).eval()
    dilated = ResNet(Shape(18, width=1 / 8, output_stride=16), 10).eval()
    dilated.load_state_dict(strided.state_dict())
    x_BCHW = torch.rand(1, 3, 128, 128)
    (few_BCHW,), (many_BCHW,) = (net.features(x_BCHW).values() for net in (strided, dilated))
    assert torch.allclose(few_BCHW, many_BCHW[:, :, ::2, ::2], atol=1e-5)


def test_residual_sizes_are_measured_block_by_block() -> None:
    torch.manual_seed(0)
    net = ResNet(Shape(8, small=True, width=0.5, shortcut="pad"), 10)
    x_BCHW = torch.rand(2, 3, 32, 32)
    sizes = residual_sizes(net, x_BCHW)
    assert list(sizes) == ["layers.layer1.0", "layers.layer2.0", "layers.layer3.0"]
    assert net.training
    net.eval()
    x_BCHW = net.layers.stem(x_BCHW)
    made = net.layers.layer1[0].residual(x_BCHW).abs().mean() / x_BCHW.abs().mean()
    assert sizes["layers.layer1.0"] == pytest.approx(float(made), rel=1e-4)


def test_the_score_says_how_large_residuals_are() -> None:
    task = ResnetPictures(depth=8)
    scores = task.score(task.models(), task.batches("val"))
    each = [scores.pop(f"residual_{number}") for number in (1, 2, 3)]
    assert set(scores) == {"accuracy", "loss", "residual"} and min(each) > 0
    assert scores["residual"] == pytest.approx(fmean(each))
    plain = ResnetPictures(depth=8, shortcut="none")
    assert set(plain.score(plain.models(), plain.batches("val"))) == {"accuracy", "loss"}
    zero = ResnetPictures(depth=8, zero_gamma=True)
    assert zero.score(zero.models(), zero.batches("val"))["residual"] == 0


def test_units_make_the_same_as_the_whole() -> None:
    net = ResNet(Shape(18, width=1 / 8), 10).eval()
    x_BCHW = torch.rand(1, 3, 64, 64)
    assert torch.equal(nn.Sequential(*net.units())(x_BCHW), net(x_BCHW))
    assert len(net.units()) == 10


@pytest.mark.parametrize(
    ("given", "message"),
    [({"depth": 15}, "task.depth=15 cannot work - allowed: 6n . 2 from 8 on"),
     ({"depth": 20, "small": False}, "task.depth=20 cannot work - allowed: 18, 34, 50"),
     ({"shortcut": "identity"}, "task.shortcut=identity cannot work - allowed: projection"),
     ({"shortcut": "none", "zero_gamma": True}, "task.zero_gamma=true with task.shortcut=none")],
)  # fmt: skip
def test_settings_that_cannot_work(given: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ResnetPictures(**given)


def test_a_depth_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="depth=51 is no ResNet - allowed: 18, 34, 50"):
        ResNet(Shape(51))


@pytest.mark.slow
def test_it_learns_far_beyond_a_linear_classifier(train: Callable[..., Models]) -> None:
    task = ResnetPictures(minibatches=300)
    models, base = train(task), task.baselines()
    assert base["chance"] == 0.1 and base["untrained"] < 0.25 and base["linear"] < 0.2
    assert task.score(models, task.batches("test"))["accuracy"] > max(0.4, base["linear"] + 0.25)
    assert task.picture(models).width > 900


@LONG
@pytest.mark.slow
def test_a_deep_plain_net_trains_worse_than_its_residual_twin(
    train: Callable[..., Models],
) -> None:
    """Both have 32 layers, the same parameters and the same start."""
    last = {}
    for shortcut in ("pad", "none"):
        losses: list[float] = []
        task = ResnetPictures(
            depth=32, width=0.25, shortcut=shortcut, augment=False, minibatches=120
        )
        train(task, losses)
        last[shortcut] = fmean(losses[-25:])
    assert last["none"] > last["pad"] + 0.05

"""zoo/segnet: maxima go back to where they were, at any size, and roads are learnt."""

from __future__ import annotations

import pytest
import torch
from learning import trained
from torch import nn
from torch.nn import functional

from dlplatform.errors import UsageError
from trainers.nets.convnet import parameter_count
from trainers.nets.segnet import VGG16, SegNet, basic, local_contrast
from trainers.zoo.fcn import FullyConvolutional
from trainers.zoo.segnet import SegNetTask


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@torch.no_grad()
@pytest.mark.parametrize("size", [(8, 12), (9, 13)])
def test_the_decoder_gets_maxima_at_their_places_and_zeros_elsewhere(
    size: tuple[int, int],
) -> None:
    net = SegNet(2, [(1, 4)]).eval()
    seen: dict[str, torch.Tensor] = {}
    net.encoder[0].register_forward_hook(lambda *call: seen.update(before=call[2]))
    net.decoder[0].register_forward_pre_hook(lambda _, inputs: seen.update(after=inputs[0]))
    net(torch.randn(1, 3, *size))
    before, after = seen["before"], seen["after"]
    assert before.shape == after.shape == (1, 4, *size)
    kept = after != 0
    assert torch.equal(after[kept], before[kept])
    maxima = functional.max_pool2d(before, 2)
    assert torch.equal(functional.max_pool2d(after, 2), maxima)
    assert int(kept.sum()) == int((maxima > 0).sum())


@torch.no_grad()
@pytest.mark.parametrize("upsample", ["index", "bilinear"])
@pytest.mark.parametrize("size", [(64, 128), (37, 51), (90, 121)])
def test_answers_have_the_size_of_the_picture(upsample: str, size: tuple[int, int]) -> None:
    net = SegNet(5, basic(4), 3, upsample).eval()
    assert net(torch.randn(1, 3, *size)).shape == (1, 5, *size)
    deep = SegNet(5, [(count, 4) for count, _ in VGG16], 3, upsample).eval()
    assert deep(torch.randn(1, 3, *size)).shape == (1, 5, *size)


def test_encoder_and_decoder_mirror_each_other_without_linear_layers() -> None:
    with torch.device("meta"):
        net = SegNetTask(net="vgg16").network(11)
        fcn = FullyConvolutional(
            depth=16, width=1.0, hidden=4096, side=224, fine=False, norm=False
        ).network(11)
    layers = list(net.modules())
    assert not any(isinstance(layer, nn.Linear) for layer in layers)
    shapes = [
        (layer.in_channels, layer.out_channels) for layer in layers if isinstance(layer, nn.Conv2d)
    ]
    assert len(shapes) == 26
    down, up = shapes[:13], shapes[13:]
    assert [(b, a) for a, b in reversed(up[:-1])] == down[1:] and up[-1] == (64, 11)
    assert 29e6 < parameter_count(net) < 30e6 < parameter_count(fcn) / 4


def test_local_contrast_removes_light_and_its_gradient_in_strength() -> None:
    x_BCHW = torch.randn(1, 3, 40, 50)
    lit = x_BCHW * 3 + 2
    assert torch.allclose(local_contrast(lit, 9), local_contrast(x_BCHW, 9), atol=0.05)
    assert float(local_contrast(lit, 9).mean().abs()) < 0.05
    assert 0.8 < float(local_contrast(lit, 9).std()) < 1.2
    net = SegNet(3, basic(4), 3, contrast=9).eval()
    normalised = net(x_BCHW)
    net.contrast = 0
    assert torch.equal(net(local_contrast(x_BCHW, 9)), normalised)


def test_rare_classes_weigh_more_and_only_if_asked() -> None:
    weights = SegNetTask(balance=1).weights()
    sky, lane = 0, 3
    assert weights is not None and weights.shape == (6,)
    assert float(weights[lane]) > 2 * float(weights[sky]) > 0
    softer = SegNetTask(balance=0.5).weights()
    assert softer is not None and torch.allclose(softer.square(), weights)
    assert SegNetTask(balance=0).weights() is None


def test_scores_name_lanes_and_vehicles() -> None:
    task = SegNetTask(width=2, kernel=3)
    scores = task.score(task.models(), task.batches("val"))
    assert set(scores) == {
        *("mIoU", "accuracy", "mean_accuracy", "fwIoU", "boundary_F1"),
        *("IoU_lane", "IoU_vehicle"),
    }


def test_size_by_default() -> None:
    assert parameter_count(SegNetTask().models()["net"]) == SegNetTask.parameters


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("net", "deep"),
        ("width", 0),
        ("kernel", 4),
        ("upsample", "none"),
        ("contrast", 8),
        ("balance", 2.0),
    ],
)
def test_settings_that_cannot_work(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"task.{name}={value} cannot work - allowed: "):
        SegNetTask(**{name: value})  # type: ignore[arg-type]


@pytest.mark.slow
def test_it_learns_roads_with_and_without_indices() -> None:
    scores = {}
    for upsample in ("index", "bilinear"):
        task = SegNetTask(minibatches=100, width=12, kernel=5, balance=0.5, upsample=upsample)
        scores[upsample] = task.score(trained(task, task.minibatches), task.batches("test"))
    base = task.baselines()
    print(scores, base)
    # A third of a run of a smaller net: linear pixels (0.53) are passed later.
    least = max(base["commonest"], base["untrained"])
    for value in scores.values():
        assert value["mIoU"] > least + 0.2 and value["accuracy"] > 0.6, (scores, base)
        assert value["boundary_F1"] > 0.2, scores

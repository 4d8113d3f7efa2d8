"""zoo/vgg: the depths and counts of the paper, named layers, and it learns."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from dlplatform.errors import UsageError
from dlplatform.task import Models
from trainers.nets.convnet import parameter_count
from trainers.nets.vgg import CONVOLUTIONS, VGG, Head
from trainers.zoo.vgg import DEPTHS, VggPictures

TINY = Head(classes=10, hidden=16, side=32)


@pytest.mark.parametrize(
    ("depth", "count"),
    [(11, 132_863_336), (13, 133_047_848), (16, 138_357_544), (19, 143_667_240)],
)
def test_parameters_of_the_published_nets(depth: int, count: int) -> None:
    with torch.device("meta"):
        net = VGG(depth)
    assert parameter_count(net) == count
    weights = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(weights) == depth


def test_most_values_are_in_the_fully_connected_layers() -> None:
    """They make one buffer of half a gigabyte, which a box cuts into pieces."""
    with torch.device("meta"):
        assert parameter_count(VGG(16).head) == 123_642_856


@pytest.mark.parametrize("depth", DEPTHS)
def test_blocks_have_convolutions_of_3x3_and_one_pooling(depth: int) -> None:
    net = VGG(depth, 1 / 16, head=TINY)
    counts = []
    for block in net.parts():
        *inner, pool = block
        assert isinstance(pool, nn.MaxPool2d)
        convs = [layer for layer in inner if isinstance(layer, nn.Conv2d)]
        assert all(conv.kernel_size == (3, 3) and conv.stride == (1, 1) for conv in convs)
        counts.append(len(convs))
    assert tuple(counts) == CONVOLUTIONS[depth]
    assert max(counts) <= 4 and (depth == 11 or min(counts) == 2)
    assert isinstance(net.head[-1], nn.Linear)
    assert sum(isinstance(layer, nn.Linear) for layer in net.head) == 3


def test_every_pooling_halves_both_sides() -> None:
    net = VGG(16, 1 / 16, head=TINY)
    pools = [f"pool{number}" for number in range(1, 6)]
    maps = net.features(torch.zeros(1, 3, 64, 96), *pools)
    sizes = [(64, 96), *(tuple(maps[name].shape[2:]) for name in pools)]
    assert all(after == (high // 2, wide // 2) for (high, wide), after in pairwise(sizes))


def test_named_layers_say_their_channels_and_strides() -> None:
    net = VGG(16, 1 / 8, norm=True, head=TINY)
    names = ("conv1_2", "norm2_1", "relu3_3", "pool4", "relu5_3")
    maps = net.features(torch.rand(1, 3, 64, 64), *names)
    assert tuple(maps) == names
    for name, x_BCHW in maps.items():
        side = 64 // net.strides[name]
        assert x_BCHW.shape == (1, net.channels[name], side, side)
    assert float(maps["conv1_2"].min()) < 0 <= float(maps["relu3_3"].min())
    assert list(net.features(torch.rand(1, 3, 32, 32))) == ["pool5"]
    with pytest.raises(ValueError, match=r"no layers \['relu9'\] - allowed: conv1_1, norm1_1"):
        net.features(torch.rand(1, 3, 32, 32), "relu9")


def test_units_make_the_same_as_the_whole() -> None:
    net = VGG(11, 1 / 8, norm=True, head=TINY).eval()
    x_BCHW = torch.rand(2, 3, 32, 32)
    assert torch.equal(nn.Sequential(*net.units())(x_BCHW), net(x_BCHW))


def test_larger_pictures_are_looked_at_everywhere() -> None:
    net = VGG(11, 1 / 8, head=TINY).eval()
    x_BCHW = torch.rand(2, 3, 64, 96)
    maps_BCHW = net.layers(x_BCHW)
    places = [
        net.head(maps_BCHW[:, :, row : row + 1, column : column + 1])
        for row in range(2)
        for column in range(3)
    ]
    assert torch.allclose(net(x_BCHW), torch.stack(places).mean(0), atol=1e-6)
    assert torch.equal(net(x_BCHW[:, :, :32, :32]), net.head(net.layers(x_BCHW[:, :, :32, :32])))


def test_dense_scores_see_larger_squares_of_a_folder(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(10):
            Image.new("RGB", (80, 70), (20 * number, 0, 0)).save(tmp_path / name / f"{number}.png")
    task = VggPictures(data=str(tmp_path), batch_size=2, dense=64)
    assert task.batch("train", 0)[0].shape == (2, 3, 32, 32)
    assert next(iter(task.batches("test")))[0].shape == (4, 3, 64, 64)
    models = task.models()
    assert task.score(models, task.batches("test"))["accuracy"] in (0, 0.25, 0.5, 0.75, 1)
    assert task.predict(models, tmp_path / "a" / "0.png")["class"] in "ab"


def test_a_pipeline_of_three_stages_has_the_same_loss() -> None:
    task = VggPictures(dropout=0.0, norm=False)
    models, batch = task.models(), task.batch("train", 0)
    cut = task.split(models, 3)
    assert len(cut.stages) == 3
    x = cut.inputs(batch)
    for stage in cut.stages:
        x = stage(x)
    assert torch.equal(cut.loss(x, batch), task.loss(models, batch))


def test_two_merged_minibatches_are_one_step_of_one_process() -> None:
    task = VggPictures(batch_size=4, dropout=0.0, norm=False)
    torch.manual_seed(0)
    net = task.models()["net"]
    parts = [task.batch("train", number) for number in (0, 1)]
    for part in parts:
        (task.loss({"net": net}, part) / 2).backward()
    split = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    task.loss({"net": net}, tuple(map(torch.cat, zip(*parts, strict=True)))).backward()
    pairs = zip(split, net.parameters(), strict=True)
    assert all(torch.allclose(a, b.grad, rtol=1e-3, atol=1e-6) for a, b in pairs)


@pytest.mark.parametrize(
    ("name", "value"),
    [("depth", 12), ("hidden", 0), ("dropout", 1.0), ("width", 0.0), ("side", 31),
     ("momentum", 1.0), ("decay", -1.0), ("schedule", "plateau"), ("warmup", 1.0),
     ("shorter", -1), ("longest", 20), ("dense", 16)],
)  # fmt: skip
def test_settings_that_cannot_work(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"task.{name}={value} cannot work - allowed: "):
        VggPictures(**{name: value})


def test_the_rate_falls_by_its_schedule() -> None:
    steps = [VggPictures(schedule="steps").rate(at) for at in (0, 0.49, 0.5, 0.74, 0.75, 1)]
    assert steps == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    cosine = [VggPictures().rate(at) for at in (0, 0.05, 0.5, 1)]
    assert cosine[1] == 1 and cosine[0] < cosine[3] + 1e-9 < cosine[2] < 1


@pytest.mark.slow
def test_it_learns_far_beyond_a_linear_classifier(train: Callable[..., Models]) -> None:
    task = VggPictures(minibatches=600)
    models, base = train(task), task.baselines()
    assert base["chance"] == 0.1 and base["untrained"] < 0.25 and base["linear"] < 0.2
    assert task.score(models, task.batches("test"))["accuracy"] > max(0.3, base["linear"] + 0.1)

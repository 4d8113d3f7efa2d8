"""zoo/shapes: pictures are a pure function of the seed, and the network learns to name them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from dlplatform.errors import UsageError
from trainers.synth.shapes import SHAPES, SIZE, Difficulty, draw_shapes
from trainers.zoo.shapes import Shapes


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_pictures_are_a_pure_function_of_the_seed() -> None:
    x_NHW, labels = draw_shapes(3, 200)
    again_NHW, same = draw_shapes(3, 200)
    assert torch.equal(x_NHW, again_NHW) and torch.equal(labels, same)
    assert not torch.equal(x_NHW, draw_shapes(4, 200)[0])
    assert x_NHW.shape == (200, SIZE, SIZE)
    assert float(x_NHW.min()) >= 0 and float(x_NHW.max()) <= 1
    assert labels.bincount().tolist() == [20] * len(SHAPES)


def test_without_noise_and_clutter_the_shape_stands_out() -> None:
    x_NHW, _ = draw_shapes(0, 100, Difficulty(degrees=0, noise=0.0, clutter=0))
    middle, corner = x_NHW[:, 4:16, 4:16].amax((1, 2)), x_NHW[:, :2, :2].amax((1, 2))
    assert float((middle - corner).min()) > 0.2


def test_splits_differ_and_minibatches_come_by_number() -> None:
    task = Shapes(seed=1)
    x_B1HW, labels = task.batch("train", 5)
    assert x_B1HW.shape == (16, 1, SIZE, SIZE) and labels.shape == (16,)
    assert torch.equal(x_B1HW, Shapes(seed=1).batch("train", 5)[0])
    sums = {split: sum(float(x.sum()) for x, _ in task.batches(split)) for split in ("val", "test")}
    assert sums["val"] != sums["test"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("batch_size", 0), ("minibatches", 0), ("lr", 0.0), ("momentum", 1.0), ("width", 0),
     ("noise", -0.1)],
)  # fmt: skip
def test_settings_that_cannot_work(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"task.{name}={value} cannot work - allowed: "):
        Shapes(**{name: value})


def test_it_learns_far_beyond_a_linear_classifier(tmp_path: Path) -> None:
    task = Shapes(seed=0, minibatches=1200)
    torch.manual_seed(0)
    models = task.models()
    optimizer = task.optimizer("main", models["net"].parameters())
    for number in range(task.minibatches):
        optimizer.param_groups[0]["lr"] = task.lr * task.rate(number / task.minibatches)
        optimizer.zero_grad()
        task.loss(models, task.batch("train", number)).backward()
        optimizer.step()
    base = task.baselines()
    assert base["chance"] == 0.1 and base["untrained"] < 0.25 < base["linear"] < 0.6
    assert task.score(models, task.batches("test"))["accuracy"] > base["linear"] + 0.15
    assert task.picture(models).width > 500
    x_NHW, labels = draw_shapes(9, 20, Difficulty(noise=0.02, clutter=0))
    names = list(SHAPES)
    right = 0
    for number, (x_HW, label) in enumerate(zip(x_NHW, labels, strict=True)):
        path = tmp_path / f"{number}.png"
        Image.fromarray((255 * x_HW).byte().numpy()).save(path)
        answer = task.predict(models, path)
        assert 0 < answer["confidence"] <= 1
        right += answer["shape"] == names[int(label)]
    assert right >= 12

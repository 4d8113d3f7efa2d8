"""zoo/digits: the facts of the book's network, pure minibatches, answers and pictures."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from seldom import LONG
from torch import nn

from dlplatform.errors import UsageError
from dlplatform.task import Models, find_task
from trainers.data.digits import load_digits
from trainers.nets.convnet import (
    DeepDigitCNN,
    he_init,
    parameter_count,
    receptive_field,
    stack_parameters,
)
from trainers.synth.augment import distort
from trainers.zoo.digits import Digits


def train(task: Digits, steps: int, seed: int = 0) -> Models:
    torch.manual_seed(seed)
    models = task.models()
    optimizer = task.optimizer("main", models["net"].parameters())
    for number in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = task.lr * task.rate(number / steps)
        optimizer.zero_grad()
        task.loss(models, task.batch("train", number)).backward()
        optimizer.step()
    return models


@pytest.fixture(scope="module")
def trained() -> Models:
    return train(Digits(), 240)


@pytest.fixture(scope="module")
def longer() -> Models:
    """Three blocks, trained with augmentation: what others are held against."""
    return train(Digits(), 500)


@pytest.fixture(scope="module")
def png(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("png") / "digit.png"


# --- the network -----------------------------------------------------------------------------


def test_parameter_count() -> None:
    assert parameter_count(DeepDigitCNN()) == 123_552


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_all_filters_are_3x3_and_all_activations_relu(blocks: int) -> None:
    layers = list(DeepDigitCNN(blocks).modules())
    filters = [layer.kernel_size for layer in layers if isinstance(layer, nn.Conv2d)]
    assert filters == [(3, 3)] * 2 * blocks
    activations = [layer for layer in layers if isinstance(layer, nn.ReLU)]
    assert len(activations) == len(filters) + 1
    kinds = {type(layer).__name__ for layer in layers if not list(layer.children())}
    assert kinds == {"Conv2d", "Linear", "ReLU", "MaxPool2d", "Flatten", "Dropout"}


def test_sizes_within_the_network() -> None:
    x = torch.zeros(2, 1, 28, 28)
    shapes = []
    for block in DeepDigitCNN().features:
        x = block(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes == [(16, 14, 14), (32, 8, 8), (64, 4, 4)]


def test_optimizer_is_adam_with_the_usual_moments() -> None:
    task = Digits(lr=0.004)
    optimizer = task.optimizer("main", task.models()["net"].parameters())
    assert type(optimizer) is torch.optim.Adam
    group = optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.004, (0.9, 0.999), 0)


def test_he_variance_is_within_5_percent_of_2_over_fan_in() -> None:
    torch.manual_seed(0)
    net = DeepDigitCNN()
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            fan_in = layer.weight[0].numel()
            draws = []
            # The first filters are only 144 values: many draws make their variance certain.
            while sum(map(len, draws)) < 50_000:
                he_init(layer)
                draws.append(layer.weight.detach().flatten().clone())
            assert torch.cat(draws).var() * fan_in / 2 == pytest.approx(1, abs=0.05)
            assert not layer.bias.any()


def test_stacked_3x3_sees_as_much_with_fewer_weights() -> None:
    assert receptive_field([3, 3]) == receptive_field([5]) == 5
    assert receptive_field([3, 3, 3]) == receptive_field([7]) == 7
    assert stack_parameters([3, 3], 64) / stack_parameters([5], 64) == pytest.approx(18 / 25)
    assert stack_parameters([3, 3, 3], 64) / stack_parameters([7], 64) == pytest.approx(27 / 49)
    conv = nn.Conv2d(64, 64, 7, bias=False)
    assert stack_parameters([7], 64) == parameter_count(conv)


def test_dropout_is_where_the_fields_say() -> None:
    def shares(task: Digits) -> list[float]:
        net = task.models()["net"]
        return [layer.p for layer in net.modules() if isinstance(layer, nn.Dropout)]

    assert shares(Digits()) == [0.5, 0.0]
    assert shares(Digits(dropout=0.2, logit_dropout=0.5)) == [0.2, 0.5]


# --- the task --------------------------------------------------------------------------------


def test_is_registered_and_light_to_import() -> None:
    code = (
        "import sys, trainers; from dlplatform.task import find_task; find_task('zoo/digits')\n"
        "print({'torch', 'numpy', 'sklearn', 'PIL'} & set(sys.modules))"
    )
    begin = time.perf_counter()
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "set()", run.stderr
    assert time.perf_counter() - begin < 5
    assert find_task("zoo/digits") is Digits


@pytest.mark.parametrize(
    ("field", "value"),
    {
        "batch_size": 0,
        "minibatches": 0,
        "lr": 0.0,
        "warmup": 1.0,
        "blocks": 4,
        "dropout": 1.0,
        "logit_dropout": -0.1,
    }.items(),
)
def test_impossible_fields_are_refused(field: str, value: float) -> None:
    with pytest.raises(UsageError, match=rf"task\.{field}={value} .*allowed: "):
        Digits(**{field: value})


def test_unknown_split_is_refused() -> None:
    with pytest.raises(UsageError, match="split=valid is not known - allowed: test, val, train"):
        Digits().batch("valid", 0)


@pytest.mark.parametrize("augment", [True, False])
def test_batch_is_a_pure_function_of_seed_and_number(augment: bool) -> None:
    first = {n: Digits(seed=2, augment=augment).batch("train", n) for n in (0, 5, 500)}
    torch.manual_seed(99)
    task = Digits(seed=2, augment=augment)
    for number in (500, 0, 5):
        x, labels = task.batch("train", number)
        assert x.equal(first[number][0]) and labels.equal(first[number][1])
    assert not Digits(seed=3, augment=augment).batch("train", 5)[0].equal(first[5][0])


def test_batch_is_what_the_network_wants() -> None:
    x, labels = Digits(batch_size=32).batch("train", 7)
    assert x.shape == (32, 1, 28, 28) and x.dtype == torch.float32
    assert x.min() >= 0 and 0.9 < x.max() <= 1
    assert labels.shape == (32,) and labels.dtype == torch.int64


def test_augmentation_changes_the_images_but_not_the_labels() -> None:
    plain, labels = Digits(augment=False).batch("train", 4)
    moved, same = Digits(augment=True).batch("train", 4)
    assert labels.equal(same)
    assert (plain - moved).abs().mean((1, 2, 3)).min() > 0.01


def test_one_epoch_shows_no_image_twice() -> None:
    task = Digits(augment=False)
    epoch = torch.cat([task.batch("train", number)[0] for number in range(1257 // 16)])
    everything = load_digits()["train"].images_NCHW
    assert len(epoch.unique(dim=0)) == min(len(epoch), len(everything.unique(dim=0)))


def test_batches_give_each_sample_once_and_unchanged() -> None:
    for split, samples in load_digits().items():
        batches = list(Digits(seed=7).batches(split))
        assert torch.cat([labels for _, labels in batches]).equal(samples.labels)
        assert (torch.cat([x for x, _ in batches]) * 255).round().equal(samples.images_NCHW.float())


def test_rate_rises_then_falls() -> None:
    rates = [Digits().rate(step / 100) for step in range(101)]
    assert max(rates) == rates[5] == 1
    assert rates[:6] == sorted(rates[:6]) and rates[5:] == sorted(rates[5:], reverse=True)
    assert 0 < rates[0] <= 0.01 and rates[100] == pytest.approx(0.01)
    assert Digits(warmup=0).rate(0) == 1


def test_four_merged_minibatches_are_one_step_of_one_process() -> None:
    """Synchronous workers that average their gradients train what one process trains (C1-8)."""
    task = Digits(dropout=0, augment=False)
    merged, single = (train(task, 0) for _ in range(2))
    adams = [task.optimizer("main", models["net"].parameters()) for models in (merged, single)]
    for step in range(3):
        parts = [task.batch("train", 4 * step + worker) for worker in range(4)]
        whole = tuple(torch.cat(column) for column in zip(*parts, strict=True))
        for part in parts:
            (task.loss(merged, part) / 4).backward()
        task.loss(single, whole).backward()
        for adam in adams:
            adam.step()
            adam.zero_grad()
    pairs = zip(merged["net"].parameters(), single["net"].parameters(), strict=True)
    assert max(float((a - b).detach().abs().max()) for a, b in pairs) < 0.05 * task.lr


# --- learning, answers, pictures -------------------------------------------------------------


def test_learns(trained: Models) -> None:
    task = Digits()
    score = task.score(trained, task.batches("test"))
    assert set(score) == {"accuracy", "loss"}
    assert score["accuracy"] > 0.88 and score["loss"] < 0.5
    assert trained["net"].training


def test_score_does_not_depend_on_how_the_split_is_cut(trained: Models) -> None:
    task = Digits()
    (x, labels), *_ = task.batches("val")
    whole = task.score(trained, [(x, labels)])
    parts = task.score(trained, [(x[:7], labels[:7]), (x[7:], labels[7:])])
    assert parts == pytest.approx(whole, rel=1e-4)


def test_baselines_are_computed() -> None:
    state = torch.get_rng_state()
    baselines = Digits().baselines()
    assert torch.get_rng_state().equal(state)
    assert baselines["chance"] == pytest.approx(0.1, abs=0.01)
    assert baselines["untrained"] < 0.35
    assert 0.93 < baselines["linear"] < 0.975


def answers(models: Models, images: list[Image.Image], png: Path) -> list[int]:
    task, given = Digits(), []
    for image in images:
        image.save(png)
        answer = task.predict(models, png)
        assert 0.1 <= answer["confidence"] <= 1
        given.append(answer["digit"])
    return given


@pytest.fixture(scope="module")
def test_images() -> tuple[list[Image.Image], list[int]]:
    test = load_digits()["test"].take(slice(0, 30))
    return [
        Image.fromarray(image) for image in test.images_NCHW[:, 0].numpy()
    ], test.labels.tolist()


def on_paper(image: Image.Image) -> Image.Image:
    sheet = Image.new("RGB", (320, 240), (235, 230, 215))
    sheet.paste((40, 40, 90), (200, 100), image.resize((90, 90), Image.Resampling.BICUBIC))
    noise = np.random.RandomState(0).normal(0, 5, (240, 320, 3))
    return Image.fromarray((np.asarray(sheet) + noise).clip(0, 255).astype(np.uint8))


def on_glass(image: Image.Image) -> Image.Image:
    ink = Image.new("RGBA", image.size, (0, 0, 0, 255))
    ink.putalpha(image)
    return ink


def test_predict_reads_any_kind_of_image(
    trained: Models, test_images: tuple[list[Image.Image], list[int]], png: Path
) -> None:
    images, labels = test_images
    plain = answers(trained, images, png)
    assert np.mean(np.equal(plain, labels)) >= 0.9
    inverted = [Image.eval(image, lambda value: 255 - value) for image in images]
    assert answers(trained, inverted, png) == plain
    deep = [Image.fromarray(np.asarray(image).astype(np.uint16) * 257) for image in images]
    assert answers(trained, deep, png) == plain
    for change in (on_paper, on_glass, lambda image: image.resize((100, 100))):
        changed = answers(trained, [change(image) for image in images], png)
        assert np.mean(np.equal(changed, labels)) >= 0.9


def test_predict_is_the_same_for_a_thin_pen_anywhere(trained: Models, png: Path) -> None:
    def zero(width: int, left: int) -> Image.Image:
        image = Image.new("L", (500, 400), 255)
        ImageDraw.Draw(image).ellipse((left, 80, left + 140, 300), outline=0, width=width)
        return image

    pens = [zero(width, left) for width in (4, 12, 30) for left in (20, 300)]
    assert answers(trained, pens, png) == [0] * 6


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n\0\0"])
def test_predict_refuses_what_is_no_image(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(content)
    task = Digits()
    with pytest.raises(UsageError, match=r"x\.png cannot be read as an image"):
        task.predict(task.models(), path)
    with pytest.raises(UsageError, match=r"gone\.png cannot be read"):
        task.predict(task.models(), tmp_path / "gone.png")


def test_predict_refuses_a_blank_sheet(png: Path) -> None:
    task = Digits()
    Image.new("L", (50, 50), 200).save(png)
    with pytest.raises(UsageError, match="is blank"):
        task.predict(task.models(), png)


def test_picture_shows_every_class(trained: Models) -> None:
    image = Digits().picture(trained)
    assert image.mode == "RGB" and 800 <= image.width <= 1600 and 600 <= image.height <= 1400
    colours = {colour for _, colour in image.getcolors(1 << 20)}
    assert (0x17, 0x8A, 0x4A) in colours


def test_picture_of_an_untrained_network_has_red_answers() -> None:
    task = Digits()
    image = task.picture(train(task, 0))
    assert (0xCF, 0x2E, 0x2A) in {colour for _, colour in image.getcolors(1 << 20)}


def test_example_fits_the_network() -> None:
    task = Digits()
    assert task.models()["net"](*task.example()).shape == (1, 10)


# --- ablations of the book -------------------------------------------------------------------


@LONG
@pytest.mark.slow
def test_augmentation_helps_where_digits_are_distorted(longer: Models) -> None:
    """C1-5: the same budget with and without augmentation, on clean and distorted test digits."""
    task = Digits(augment=False)
    distorted = [(distort(x, n), labels) for n, (x, labels) in enumerate(task.batches("test"))]
    scores = []
    for models in (train(task, 500), longer):
        scores.append(task.score(models, distorted)["accuracy"])
        assert task.score(models, task.batches("test"))["accuracy"] >= 0.97
    assert scores[1] >= scores[0] + 0.02


@LONG
@pytest.mark.slow
def test_depth_helps(longer: Models) -> None:
    """C1-6: three blocks beat one, though one has more parameters."""
    task = Digits(blocks=1)
    one, three = (
        task.score(models, task.batches("test"))["accuracy"]
        for models in (train(task, 500), longer)
    )
    assert parameter_count(DeepDigitCNN(1)) > parameter_count(DeepDigitCNN(3))
    assert three >= one

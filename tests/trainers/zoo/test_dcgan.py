"""zoo/dcgan: two networks in turns; what comes out is varied, looks real and is not copied."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from seldom import LONG
from torch import Tensor, nn

from dlplatform.checkpoint import Checkpoint, moments_of, put_weights, weights_of
from dlplatform.errors import UsageError
from dlplatform.task import Models
from trainers.data.unlabelled import load_pictures
from trainers.nets.convnet import parameter_count
from trainers.nets.dcgan import Discriminator, Generator, between, judged, targets
from trainers.scores.frechet import frechet
from trainers.scores.made import coverage, nearest
from trainers.zoo.dcgan import DCGAN


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def small(**fields: object) -> DCGAN:
    return DCGAN(**{"width": 4, "noise": 8, "batch_size": 8, "g_steps": 1, **fields})


def trained(task: DCGAN, stale: int = 0) -> Models:
    """Train by a plain loop; gradients are of weights that are ``stale`` steps old."""
    torch.manual_seed(task.seed)
    models = task.models()
    groups = {name: list(parameters) for name, parameters in task.groups(models).items()}
    optimizers = {name: task.optimizer(name, group) for name, group in groups.items()}
    late: dict[str, list[list[Tensor]]] = {name: [] for name in groups}
    for number in range(task.minibatches):
        for name, loss in task.losses(models, task.batch("train", number)):
            optimizer = optimizers[name]
            optimizer.param_groups[0]["lr"] = task.lr * task.rate(number / task.minibatches)
            optimizer.zero_grad()
            (loss if isinstance(loss, Tensor) else sum(loss.values())).backward()
            late[name].append([p.grad.clone() for p in groups[name]])
            if len(late[name]) > stale:
                for p, grad in zip(groups[name], late[name].pop(0), strict=True):
                    p.grad = grad
                optimizer.step()
    for model in models.values():
        model.eval()
    return models


@pytest.mark.parametrize("size", [8, 16, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_have_their_size_and_range(size: int, channels: int) -> None:
    made_BCHW = Generator(size, channels, 4, 8)(torch.rand(3, 8))
    assert made_BCHW.shape == (3, channels, size, size)
    assert made_BCHW.abs().max().item() <= 1
    assert Discriminator(size, channels, 4)(made_BCHW).shape == (3,)


def test_networks_have_no_pooling_and_no_hidden_linear_layer() -> None:
    task = DCGAN()
    models = task.models()
    layers = [layer for net in models.values() for layer in net.modules()]
    assert not [x for x in layers if isinstance(x, nn.MaxPool2d | nn.AvgPool2d | nn.Linear)]
    assert sum(map(parameter_count, models.values())) == task.parameters
    norms = [isinstance(x, nn.BatchNorm2d) for x in models["D"].layers[:2]]
    assert not any(norms) and isinstance(models["G"].layers[-1], nn.Tanh)
    weights = torch.cat([x.weight.flatten() for x in layers if isinstance(x, nn.Conv2d)])
    assert float(weights.mean()) == pytest.approx(0, abs=1e-3)
    assert float(weights.std()) == pytest.approx(0.02, rel=0.05)


def test_the_discriminator_is_to_say_ones_for_real_and_zeros_for_made() -> None:
    logits_B = torch.tensor([2.0, -1.0, 0.5])
    assert targets(logits_B, real=True).tolist() == [1, 1, 1]
    assert targets(logits_B, real=False).tolist() == [0, 0, 0]
    wanted = -torch.log(torch.sigmoid(logits_B)).mean()
    assert float(judged(logits_B, real=True)) == pytest.approx(float(wanted))


def test_each_network_stands_still_while_the_other_steps() -> None:
    task = small(g_steps=2)
    models = task.models()
    groups = {name: list(parameters) for name, parameters in task.groups(models).items()}
    optimizers = {name: task.optimizer(name, group) for name, group in groups.items()}
    order = []
    for name, loss in task.losses(models, task.batch("train", 0)):
        before = {n: [p.detach().clone() for p in group] for n, group in groups.items()}
        optimizers[name].zero_grad()
        (loss if isinstance(loss, Tensor) else sum(loss.values())).backward()
        if name == "D":
            assert all(p.grad is None for p in groups["G"])
        optimizers[name].step()
        order.append(name)
        moved = {
            n
            for n, group in groups.items()
            if any(not torch.equal(p, q) for p, q in zip(group, before[n], strict=True))
        }
        assert moved == {name}
    assert order == ["D", "G", "G"]


def test_both_groups_are_in_a_checkpoint(tmp_path: Path) -> None:
    task = small()
    models = task.models()
    optimizers = {name: task.optimizer(name, p) for name, p in task.groups(models).items()}
    for name, loss in task.losses(models, task.batch("train", 0)):
        (loss if isinstance(loss, Tensor) else sum(loss.values())).backward()
        optimizers[name].step()
    Checkpoint(1, weights_of(models), moments_of(optimizers)).save(tmp_path)
    saved, fresh = Checkpoint.load(tmp_path), task.models()
    put_weights(fresh, saved.weights)
    noise_BZ = task.batch("train", 1)[1][0]
    for net in ("G", "D"):
        models[net].eval(), fresh[net].eval()
        moments = [name for name in saved.moments if name.startswith(f"{net}/")]
        assert len(moments) == 3 * len(list(models[net].parameters()))
    made_BCHW = fresh["G"](noise_BZ)
    assert torch.equal(made_BCHW, models["G"](noise_BZ))
    assert torch.equal(fresh["D"](made_BCHW), models["D"](made_BCHW))


def test_minibatches_come_by_number() -> None:
    task = small()
    x_BCHW, noise_SBZ = task.batch("train", 5)
    again_BCHW, same_SBZ = small().batch("train", 5)
    assert torch.equal(x_BCHW, again_BCHW) and torch.equal(noise_SBZ, same_SBZ)
    assert x_BCHW.shape == (8, 1, 16, 16) and noise_SBZ.shape == (1, 8, 8)
    assert float(x_BCHW.min()) >= -1 and float(x_BCHW.max()) <= 1
    assert not torch.equal(noise_SBZ, task.batch("train", 6)[1])


def test_the_frechet_distance_of_gaussians_is_known() -> None:
    draw = torch.Generator().manual_seed(0)
    one_NF = torch.randn(20_000, 3, generator=draw)
    assert frechet(one_NF, one_NF) == pytest.approx(0, abs=1e-9)
    shift = torch.tensor([1.0, 2.0, 0.0])
    assert frechet(one_NF, one_NF + shift) == pytest.approx(5, abs=1e-4)
    assert frechet(one_NF, 3 * one_NF) == pytest.approx(3 * 4, rel=0.05)


def test_coverage_counts_classes_that_are_surely_there() -> None:
    answer_N = torch.tensor([0] * 50 + [1] * 50)
    sure_N = torch.ones(100)
    assert coverage(sure_N, answer_N) == 2
    sure_N[50:] = 0.4
    assert coverage(sure_N, answer_N) == 1


def test_a_walk_through_the_noise_goes_in_equal_steps_from_end_to_end() -> None:
    ends_2Z = torch.tensor([[0.0, 1.0], [1.0, -1.0]])
    walk_BZ = between(ends_2Z, 5)
    assert torch.equal(walk_BZ[[0, -1]], ends_2Z)
    assert torch.allclose(walk_BZ.diff(dim=0), torch.tensor([[0.25, -0.5]] * 4))


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    draw = np.random.default_rng(0)
    for n in range(48):
        shape = (20 + n % 3, 24, 3)
        Image.fromarray(draw.integers(0, 255, shape, np.uint8)).save(tmp_path / f"{n:02d}.png")
    yield tmp_path


def test_a_folder_of_pictures_is_split_and_trained_on(folder: Path) -> None:
    parts = load_pictures(str(folder), 8)
    assert {name: len(part) for name, part in parts.items()} == {"train": 40, "val": 4, "test": 4}
    task = small(data=str(folder), size=8, minibatches=3)
    models = trained(task)
    scores = task.score(models, task.batches("test"))
    assert {"f1", "novelty", "told_apart"} <= set(scores) and "coverage" not in scores
    assert task.picture(models).width > 500


def test_a_folder_without_enough_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has 0 pictures below it - allowed: "):
        load_pictures(str(tmp_path), 8)
    with pytest.raises(UsageError, match="is not a folder - allowed: "):
        load_pictures(str(tmp_path / "none"), 8)
    for n in range(40):
        (tmp_path / f"{n}.png").write_bytes(b"no picture")
    with pytest.raises(UsageError, match="cannot be read as an image"):
        load_pictures(str(tmp_path), 8)["train"].take(torch.arange(2))


@pytest.mark.parametrize(
    ("name", "value"),
    [("batch_size", 1), ("lr", 0.0), ("size", 20), ("width", 0), ("noise", 0), ("g_steps", 0),
     ("beta", 1.0), ("grid_every", 0)],
)  # fmt: skip
def test_settings_that_cannot_work(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"task.{name}={value} cannot work - allowed: "):
        DCGAN(**{name: value})


def test_grids_of_samples_are_written_while_it_trains(tmp_path: Path) -> None:
    task = small(grids=str(tmp_path / "grids"), grid_every=10)
    models = task.models()
    for number in range(25):
        task.after(models, number)
    assert sorted(p.name for p in (tmp_path / "grids").iterdir()) == ["0000010.png", "0000020.png"]
    assert Image.open(tmp_path / "grids/0000010.png").size == (8 * 16 * 4, 8 * 16 * 4)


def test_files_of_a_user_are_answered(tmp_path: Path) -> None:
    task = small()
    models = task.models()
    (asked := tmp_path / "some.json").write_text(json.dumps({"seed": 7, "count": 9}))
    assert task.predict(models, asked) == {"made": 9, "picture": str(tmp_path / "some.png")}
    assert 0 <= task.predict(models, tmp_path / "some.png")["real"] <= 1
    for text in ("no", "[]", "{}", '{"seed": -1}', '{"seed": "x"}', '{"count": 0}'):
        asked.write_text(text)
        with pytest.raises(UsageError, match=r"some.json holds .* - allowed: "):
            task.predict(models, asked)


@pytest.mark.slow
@pytest.mark.parametrize("stale", [0, pytest.param(2, marks=LONG)])
def test_it_draws_varied_digits_that_were_not_copied(stale: int) -> None:
    """With ``stale`` gradients, too: as they are when workers do not wait for each other."""
    task = DCGAN(seed=0)
    models = trained(task, stale)
    scores = task.score(models, task.batches("test"))
    base = task.baselines()
    least = 0.3 if stale else 0.5  # old gradients cost quality, but it learns
    assert base["untrained"] < 0.1 < least < scores["f1"] < base["real"]
    assert scores["first_distance"] > 3 * scores["distance"]
    assert scores["confidence"] >= 0.8 and scores["coverage"] >= 8
    assert 0.5 <= scores["told_apart"] < 1 or stale
    made_NCHW = task._made(models, next(task.batches("test"))[1][0])
    assert float(nearest(made_NCHW, task._known())[0].min()) > 0 and scores["novelty"] > 0.5

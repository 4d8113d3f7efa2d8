"""What all tasks of class maps do: batches, the loss, answers for files, pictures, baselines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from dlplatform.errors import UsageError
from trainers.blocks.pixels import class_map, median_frequency, pixel_loss
from trainers.blocks.segmenter import Segmenter
from trainers.data.scenes import Kinds, Scenes
from trainers.synth.road import KINDS


class TwoHeads(nn.Module):
    """Logits, and auxiliary ones in training."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.out, self.aux = nn.Conv2d(3, classes, 3, padding=1), nn.Conv2d(3, classes, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor | dict[str, Tensor]:
        out = self.out(x_BCHW)
        return {"out": out, "aux": self.aux(x_BCHW)} if self.training else out


@dataclass
class Small(Segmenter):
    """A segmenter with the smallest of nets."""

    def network(self, classes: int) -> nn.Module:
        return TwoHeads(classes)


@pytest.fixture
def small() -> Small:
    torch.set_num_threads(1)
    return Small()


def test_minibatches_are_a_pure_function_of_their_number(small: Small) -> None:
    x_BCHW, labels_BHW = small.batch("train", 60)
    again_BCHW, same_BHW = Small().batch("train", 60)
    assert x_BCHW.shape == (8, 3, 64, 128) and labels_BHW.shape == (8, 64, 128)
    assert torch.equal(x_BCHW, again_BCHW) and torch.equal(labels_BHW, same_BHW)
    assert not torch.equal(x_BCHW, small.batch("train", 61)[0])
    assert Small(crop=48).batch("train", 0)[1].shape == (8, 48, 48)


def test_splits_have_their_sizes_and_share_nothing(small: Small) -> None:
    whole = {split: torch.cat([y for _, y in small.batches(split)]) for split in ("val", "test")}
    assert len(small.scenes("train")) == 400
    assert whole["val"].shape == whole["test"].shape == (80, 64, 128)
    assert not (whole["val"] == whole["test"]).all((1, 2)).any()
    with pytest.raises(UsageError, match=r"task.split=dev cannot work - allowed: train, val"):
        small.scenes("dev")


def test_the_loss_is_the_mean_over_judged_pixels() -> None:
    logits, labels = torch.randn(2, 4, 5, 6), torch.randint(4, (2, 5, 6))
    labels[0, 0] = 255
    expected = functional.cross_entropy(logits, labels, ignore_index=255)
    assert torch.allclose(pixel_loss(logits, labels), expected)
    weights = torch.tensor([1.0, 2.0, 0.5, 0.0])
    weighted = functional.cross_entropy(logits, labels, weights, ignore_index=255)
    assert torch.allclose(pixel_loss(logits, labels, weights), weighted)
    assert float(pixel_loss(logits, torch.full_like(labels, 255))) == 0.0


def test_auxiliary_logits_count_in_training_and_are_gone_after(small: Small) -> None:
    models = small.models()
    terms = small.loss(models, small.batch("train", 0))
    assert isinstance(terms, dict) and set(terms) == {"pixels", "auxiliary"}
    sum(terms.values()).backward()
    assert models["net"].aux.weight.grad is not None  # type: ignore[union-attr]
    models["net"].eval()
    assert isinstance(small.loss(models, small.batch("train", 0)), Tensor)


def test_sharded_scores_are_those_of_the_whole(small: Small) -> None:
    models, batches = small.models(), list(small.batches("val"))
    parts = small.tally(models, batches[:1]) + small.tally(models, batches[1:])
    assert parts.scores() == small.score(models, batches)


def test_classes_are_weighed_by_their_median_frequency() -> None:
    kinds = Kinds(("a", "b", "c", "d"), ((0, 0, 0),) * 4)
    first, second = np.zeros((2, 10), np.uint8), np.zeros((2, 10), np.uint8)
    first[0, :4], second[0, :5] = 1, 2
    second[1, 0] = 255
    pictures = [(np.zeros((2, 10, 3), np.uint8), labels) for labels in (first, second)]
    weights = median_frequency(Scenes(kinds, 2, pictures.__getitem__))
    frequency = {"a": 30 / 39, "b": 4 / 20, "c": 5 / 19}
    median = frequency["c"]
    expected = [median / frequency[name] for name in "abc"] + [0.0]
    assert weights.tolist() == pytest.approx(expected)


def test_only_rgb_pictures_are_segmented(small: Small) -> None:
    net = small.models()["net"]
    for shape in ((1, 1, 32, 32), (3, 32, 32)):
        with pytest.raises(UsageError, match="cannot be segmented - allowed: "):
            class_map(net, torch.zeros(shape))
    labels_BHW = class_map(net, torch.zeros(2, 3, 33, 47))
    assert labels_BHW.shape == (2, 33, 47) and labels_BHW.dtype == torch.uint8


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_an_answer_is_files_of_the_size_of_the_picture(
    small: Small, tmp_path: Path, mode: str
) -> None:
    Image.new(mode, (300, 170)).save(tmp_path / "street.png")
    answer = small.predict(small.models(), tmp_path / "street.png")
    assert sum(answer["shares"].values()) == pytest.approx(1, abs=1e-3)
    assert list(answer["shares"]) == list(KINDS.names)
    labels = np.asarray(Image.open(answer["classes"]))
    assert labels.shape == (170, 300) and labels.max() < 6
    assert Image.open(answer["overlay"]).size == (300, 170)
    for name, classes in (("lane", [3]), ("free", [2, 3])):
        mask = np.asarray(Image.open(answer[name]))
        assert np.array_equal(mask == 255, np.isin(labels, classes))
        assert set(np.unique(mask)) <= {0, 255}
    assert {Path(answer[k]).parent for k in ("classes", "free")} == {tmp_path / "segmented"}


def test_files_that_are_no_pictures_or_cannot_be_answered(small: Small, tmp_path: Path) -> None:
    text = tmp_path / "street.png"
    text.write_text("no picture")
    with pytest.raises(UsageError, match=r"street.png cannot be read as an image"):
        small.predict(small.models(), text)
    Image.new("RGB", (64, 64)).save(text)
    (tmp_path / "segmented").write_text("in the way")
    with pytest.raises(UsageError, match="segmented cannot be written"):
        small.predict(small.models(), text)


def test_the_picture_shows_images_truth_answers_and_all_classes(small: Small) -> None:
    sheet = small.picture(small.models())
    assert sheet.width > 1000 and sheet.height > 500
    seen = {colour for _, colour in sheet.getcolors(1 << 24)}
    assert set(KINDS.colours) <= seen


def test_baselines_are_ordered(small: Small) -> None:
    base = small.baselines()
    assert 0 <= base["untrained"] < 0.2 and 0.03 < base["commonest"] < 0.1
    assert base["commonest"] + 0.1 < base["linear"] < 0.75


@pytest.mark.parametrize(
    ("name", "value"),
    [("momentum", 1.0), ("decay", -1.0), ("crop", 16), ("scale", 0.5), ("batch_size", 0)],
)
def test_settings_that_cannot_work(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"task.{name}={value} cannot work - allowed: "):
        Small(**{name: value})


def test_rate_and_optimizer(small: Small) -> None:
    assert small.rate(0.0) == 1 and small.rate(0.5) == pytest.approx(0.5**0.9)
    optimizer = small.optimizer("main", small.models()["net"].parameters())
    assert isinstance(optimizer, torch.optim.SGD) and optimizer.defaults["weight_decay"] == 1e-4

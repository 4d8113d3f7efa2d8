"""human/instances: objects are found and cut out, in pictures of users too, and it is learnt."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from detectors import SMALL, begun, certain, in_halves, scored, written
from learning import trained
from PIL import Image
from seldom import LONG

from dlplatform.checkpoint import Checkpoint, weights_of
from dlplatform.errors import UsageError
from dlplatform.task import added
from trainers.data.coco_writing import write_coco
from trainers.data.rle import decode, from_text
from trainers.data.weights import take_fitting
from trainers.human.instances import Objects
from trainers.nets.convnet import parameter_count
from trainers.synth.objects import objects


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def small(**more: Any) -> Objects:
    return Objects(**{**SMALL, "classes": 2, **more})


def test_size_by_default() -> None:
    assert parameter_count(Objects().models()["net"]) == Objects.parameters
    assert len(Objects(classes=80).examples("test").kinds.names) == 80


def test_losses_are_those_of_one_worker_on_all_pictures() -> None:
    task = small(batch_size=4)
    whole, _ = in_halves(task, begun(task), task.batch("train", 0))
    assert set(whole) == {"classes", "boxes", "centre", "masks"}


def test_without_masks_it_has_no_head_for_them() -> None:
    task = small(masks=False)
    models = begun(task)
    assert set(task.loss(models, task.batch("train", 0))) == {"classes", "boxes", "centre"}
    assert parameter_count(models["net"]) < parameter_count(small().models()["net"])
    with torch.no_grad():
        scores = task.score(models, list(task.batches("val"))[:1])
    assert "box_AP50" in scores and "mask_AP50" not in scores


def test_attention_is_in_the_head_of_the_masks_and_can_be_left_out() -> None:
    on, off = (begun(small(attention=on))["net"] for on in (True, False))
    assert set(on.state_dict()) - set(off.state_dict()) == {"masks.attention.conv.weight"}


@pytest.mark.parametrize("frames", [1, 3])
def test_a_users_picture_is_answered_in_its_own_pixels(tmp_path: Path, frames: int) -> None:
    task = small(shown=0.0, most=3)
    path = written(task, tmp_path, frames)
    with torch.no_grad():
        answer = task.predict(certain(begun(task)), path)
    json.dumps(answer)
    shown = Image.open(answer["picture"])
    assert Path(answer["picture"]).parent == tmp_path / "found"
    assert getattr(shown, "n_frames", 1) == frames
    lines = [answer]
    if frames > 1:
        lines = [json.loads(line) for line in Path(answer["lines"]).read_text().splitlines()]
        assert [line["time"] for line in lines] == [0.0, 0.5, 1.0]
    every = [line["objects"] for line in lines]
    assert len(every) == frames
    for record in every[0]:
        x0, y0, x1, y1 = record["box"]
        assert 0 <= x0 <= x1 <= 160 and 0 <= y0 <= y1 <= 100 and 0 <= record["score"] <= 1
        assert record["mask"]["size"] == [100, 160]
        decode(from_text(record["mask"]["counts"]), 100, 160)
    assert every[0]


def test_nothing_in_a_picture_is_an_empty_answer(tmp_path: Path) -> None:
    task = small(shown=1.0)
    Image.new("RGB", (50, 70)).save(tmp_path / "empty.png")
    with torch.no_grad():
        assert task.predict(begun(task), tmp_path / "empty.png")["objects"] == []
    (tmp_path / "no.png").write_text("no picture")
    with pytest.raises(UsageError, match="cannot be read as an image"):
        task.predict(begun(task), tmp_path / "no.png")


def test_folders_of_coco_are_learnt_from_and_judged(tmp_path: Path) -> None:
    sets = {name: objects(number, 4, 3, 96) for number, name in enumerate(("train", "val"))}
    write_coco(sets, tmp_path)
    task = small(data=str(tmp_path))
    x_BCHW, truths = task.batch("train", 0)
    assert x_BCHW.shape == (2, 3, 64, 64)
    assert all(one.masks_NHW is not None and one.masks_NHW.any() for one in truths)
    models = begun(task)
    added(task.loss(models, (x_BCHW, truths))).backward()
    assert len(task.examples("test")) == 2 and len(task.examples("test").kinds.names) == 3
    with torch.no_grad():
        assert "mask_AP50" in task.score(models, task.batches("test"))
    with pytest.raises(UsageError, match="is not a folder"):
        small(data=str(tmp_path / "nowhere")).examples("train")


def test_other_classes_are_learnt_from_another_runs_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = {name: value + 1 for name, value in weights_of(begun(small())).items()}
    monkeypatch.setattr(
        "trainers.data.weights.Checkpoint.load", lambda folder: SimpleNamespace(weights=saved)
    )
    task = small(classes=5, start=str(tmp_path), keep="backbone")
    models = task.models()
    said = task.begin(models)
    own = weights_of(models)
    new = {name for name in own if own[name].shape != saved[name].shape}
    assert said == f"weights of {tmp_path}; anew: {', '.join(sorted(new))}"
    assert len(new) == 4 and all("logits" in name or "masks.masks" in name for name in new)
    assert all(torch.equal(own[name], saved[name]) for name in set(own) - new)
    trained = sum(value.numel() for value in task.groups(models)["main"])
    net = models["net"]
    assert trained == parameter_count(net) - parameter_count(net.backbone)
    with pytest.raises(UsageError, match="fits"):
        take_fitting(small(width=24, backbone="19-slim-dw").models(), "run", "task.start")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("classes", 81),
        ("pictures", 0),
        ("backbone", "huge"),
        ("norm", "layer"),
        ("width", 20),
        ("levels", 2),
        ("towers", 0),
        ("side", 100),
        ("keep", "all"),
        ("shown", 2.0),
        ("learnt", 0),
    ],
)
def test_settings_that_cannot_work(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"task.{name}={value} cannot work - allowed: "):
        Objects(**{name: value})  # type: ignore[arg-type]


@pytest.mark.slow
def test_it_learns() -> None:
    task = Objects(
        side=64, width=32, towers=1, classes=2, pictures=120, batch_size=8, lr=4e-3, scale=1.0
    )
    after, before = scored(task, 90)
    assert after["box_AP50"] > 0.2 > 0.1 > before["box_AP50"]
    assert after["mask_AP50"] > 0.1


@LONG
@pytest.mark.slow
def test_species_are_learnt_sooner_by_who_knows_other_things(tmp_path: Path) -> None:
    shape: dict[str, Any] = {
        **{"side": 64, "width": 32, "towers": 1, "batch_size": 8, "lr": 4e-3, "masks": False}
    }
    before = Objects(**shape, pictures=160, minibatches=110)
    Checkpoint(110, weights_of(trained(before, 110))).save(tmp_path)
    told = []
    for start in (str(tmp_path), ""):
        more: dict[str, Any] = {"pictures": 80, "minibatches": 40, "start": start}
        fish = Objects(**shape, **more, subject="fish")
        models, batches = trained(fish, 40), list(fish.batches("val"))[:2]
        with torch.no_grad():
            loss = sum(float(added(fish.loss(models, batch))) for batch in batches)
            told.append({"loss": loss, **fish.score(models, batches)})
    tuned, scratch = told
    for name in ("loss", "top1", "box_AP50", "box_AR"):
        print(f"fish, {name}: {tuned[name]:.3f} tuned, {scratch[name]:.3f} from scratch")
    assert tuned["loss"] < 0.97 * scratch["loss"] and tuned["box_AR"] > scratch["box_AR"]
    assert tuned["top1"] > scratch["top1"] + 0.04

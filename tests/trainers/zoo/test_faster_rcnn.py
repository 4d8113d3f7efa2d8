"""zoo/faster_rcnn: proposals without help from outside, both schedules, and scenes are learnt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from learning import some, trained
from PIL import Image

from dlplatform.errors import UsageError
from dlplatform.task import Mean, added
from trainers.blocks.boxes import pair_iou
from trainers.blocks.twostage import two_stages
from trainers.nets.convnet import parameter_count
from trainers.zoo.faster_rcnn import FasterRCNN

SMALL: dict[str, Any] = {"hidden": 16, "inner": 16, "batch_size": 2, "kept": 20, "minibatches": 40}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def test_size_and_anchors_by_default() -> None:
    net = two_stages(FasterRCNN().models())
    assert parameter_count(net) == FasterRCNN.parameters
    assert net.rpn is not None
    assert net.rpn.anchors.ratios == (0.5, 1.0, 2.0) and net.rpn.anchors.sizes == (16, 32, 64)


def test_every_layer_learns_from_pictures_and_objects_alone() -> None:
    task = FasterRCNN(**SMALL)
    models = task.models()
    terms = task.loss(models, task.batch("train", 0))
    assert set(terms) == {"rpn_class", "rpn_box", "class", "box"}
    assert all(isinstance(term, Mean) and float(term.number) > 0 for term in terms.values())
    added(terms).backward()  # type: ignore[no-untyped-call]
    idle = [name for name, p in models["net"].named_parameters() if p.grad is None]
    assert not idle


def test_a_picture_without_objects_has_a_loss() -> None:
    task = FasterRCNN(**SMALL)
    x_BCHW, truths = task.batch("train", 0)
    nothing = [truth.take(torch.zeros(len(truth.labels_N), dtype=torch.bool)) for truth in truths]
    terms = task.loss(task.models(), (x_BCHW, nothing))
    assert float(terms["box"].total.detach()) == 0 and torch.isfinite(added(terms))


def test_the_alternating_schedule_has_four_steps_of_two_groups() -> None:
    task = FasterRCNN(schedule="alternating", **SMALL)
    models = task.models()
    net = two_stages(models)
    assert [task.step_of(number) for number in (0, 9, 10, 20, 39, 99)] == [0, 0, 1, 2, 3, 3]
    groups = {name: list(parameters) for name, parameters in task.groups(models).items()}
    assert set(groups) == {"rpn", "head"}
    moved = []
    for number in (0, 10, 20, 30):
        asked = set()
        for name, terms in task.losses(models, task.batch("train", number)):
            models["net"].zero_grad()
            assert isinstance(terms, dict)
            # A worker that is a step ahead of another has the same terms.
            assert len(terms) == {"rpn": 4, "head": 2}[name]
            added(terms).backward()  # type: ignore[no-untyped-call]
            own = {id(p) for p in groups[name]}
            for part, module in (("trunk", net.trunk), ("rpn", net.rpn), ("head", net.boxes)):
                assert module is not None
                grads = [p.grad for p in module.parameters() if id(p) in own]
                if any(grad is not None and bool(grad.any()) for grad in grads):
                    asked.add(part)
        moved.append(asked)
    assert moved == [{"trunk", "rpn"}, {"trunk", "head"}, {"rpn"}, {"head"}]


def test_what_regions_ask_of_shared_layers_is_what_they_ask_in_one_go() -> None:
    task = FasterRCNN(schedule="alternating", **SMALL)
    models = task.models()
    net = two_stages(models).eval()
    x_BCHW, truths, number = task.batch("train", 10)
    torch.manual_seed(1)
    steps = dict(task.losses(models, (x_BCHW, truths, number)))
    added(steps["rpn"]).backward()  # type: ignore[no-untyped-call]
    split = [p.grad.clone() for p in net.trunk.parameters() if p.grad is not None]
    net.zero_grad()
    torch.manual_seed(1)
    map_BCHW = net.trunk(x_BCHW)
    assert net.rpn is not None
    boxes = task.proposals(net, (map_BCHW, *net.rpn(map_BCHW)), x_BCHW)
    added(task.region_loss(net, map_BCHW, boxes, truths)).backward()  # type: ignore[no-untyped-call]
    whole = [p.grad for p in net.trunk.parameters() if p.grad is not None]
    for one, other in zip(split, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("schedule", "both"), ("anchors", ""), ("ratios", "1:2"), ("kept", 9999), ("net", "big")),
        *(("pooling", "max"), ("iou", 1.0), ("momentum", 1.0)),
    ],
)
def test_settings_that_cannot_work(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"task.{name}={value} cannot work - allowed: "):
        FasterRCNN(**{name: value})  # type: ignore[arg-type]


@pytest.mark.slow
def test_it_finds_shapes_in_scenes(tmp_path: Path) -> None:
    task = FasterRCNN(minibatches=60, shown=0.2)
    models = trained(task, task.minibatches)
    scores, base = task.score(models, some(task)), task.baselines()
    print(scores, base)
    # A fifth of a run; a whole one reaches 0.95.
    assert scores["box_AP50"] > 0.2 > base["untrained"] + 0.1
    assert scores["recall"] >= 0.8 and scores["proposals"] <= 100
    image_HW3, truth = task.examples("test")[0]
    Image.fromarray(image_HW3).save(tmp_path / "scene.png")
    answer = task.predict(models, tmp_path / "scene.png")
    boxes = torch.tensor([one["box"] for one in answer["objects"]]).reshape(-1, 4)
    assert len(boxes) and float(pair_iou(boxes, truth.boxes_N4).max()) > 0.4

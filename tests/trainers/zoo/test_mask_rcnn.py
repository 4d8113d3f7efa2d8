"""zoo/mask_rcnn: masks of the object's class alone, none where there is no object, and learnt."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from learning import some, trained

from dlplatform.errors import UsageError
from dlplatform.task import added
from trainers.blocks.twostage import two_stages
from trainers.nets.convnet import parameter_count
from trainers.zoo.mask_rcnn import MaskRCNN

SMALL: dict[str, Any] = {"hidden": 16, "inner": 16, "batch_size": 2, "kept": 20, "masks": 8}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def test_size_by_default() -> None:
    assert parameter_count(MaskRCNN().models()["net"]) == MaskRCNN.parameters


def test_a_mask_learns_from_the_class_of_its_object_alone() -> None:
    task = MaskRCNN(**SMALL)
    models = task.models()
    net = two_stages(models)
    assert net.masks is not None
    x_BCHW, truths = task.batch("train", 0)
    discs = [truth._replace(labels_N=truth.labels_N * 0 + 1) for truth in truths]
    term = task.loss(models, (x_BCHW, discs))["mask"]
    assert float(term.number) > 0
    term.total.backward()  # type: ignore[no-untyped-call]
    grad = net.masks.masks.weight.grad
    assert grad is not None
    assert [bool(grad[label].any()) for label in range(3)] == [False, True, False]


def test_without_objects_the_loss_of_the_masks_is_nothing() -> None:
    task = MaskRCNN(**SMALL)
    models = task.models()
    net = two_stages(models)
    x_BCHW, truths = task.batch("train", 0)
    nothing = [truth.take(torch.zeros(len(truth.labels_N), dtype=torch.bool)) for truth in truths]
    terms = task.loss(models, (x_BCHW, nothing))
    assert float(terms["mask"].total.detach()) == 0 and float(terms["mask"].number) == 0
    added(terms).backward()  # type: ignore[no-untyped-call]
    assert net.masks is not None
    grads = [p.grad for p in net.masks.parameters()]
    assert all(grad is None or not grad.any() for grad in grads)


def test_masks_lie_in_their_boxes_and_are_of_the_picture() -> None:
    task = MaskRCNN(**SMALL, least=0.0)
    models = task.models()
    models["net"].eval()
    x_BCHW, _ = task.batch("val", 0)
    for found in task.found(models, x_BCHW):
        assert found.masks_NHW is not None and found.masks_NHW.dtype == torch.bool
        assert found.masks_NHW.shape == (len(found.labels_N), 128, 128)
        for box_4, mask_HW in zip(found.boxes_N4, found.masks_NHW, strict=True):
            rows, columns = mask_HW.nonzero(as_tuple=True)
            if len(rows):
                assert float(columns.min()) >= float(box_4[0]) - 1.5
                assert float(rows.max()) <= float(box_4[3]) + 1.5


@pytest.mark.parametrize(("name", "value"), [("masks", 12), ("convs", 0), ("regions", 1)])
def test_settings_that_cannot_work(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"task.{name}={value} cannot work - allowed: "):
        MaskRCNN(**{name: value})  # type: ignore[arg-type]


@pytest.mark.slow
def test_it_cuts_shapes_out_of_scenes() -> None:
    task = MaskRCNN(minibatches=48)
    scores = task.score(trained(task, task.minibatches), some(task))
    print(scores)
    # A sixth of a run; a whole one reaches 0.95 with both.
    assert scores["box_AP50"] > 0.2 and scores["mask_AP50"] > 0.2

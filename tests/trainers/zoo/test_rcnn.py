"""zoo/rcnn: every proposal is warped and seen on its own, and four stages follow each other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from learning import some, trained

from dlplatform.errors import UsageError
from dlplatform.task import added
from trainers.nets.convnet import parameter_count
from trainers.nets.crops import warped
from trainers.zoo.rcnn import RCNN

SMALL: dict[str, Any] = {"batch_size": 2, "minibatches": 10, "width": 0.05, "hidden": 8}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def test_size_by_default() -> None:
    assert sum(parameter_count(net) for net in RCNN().models().values()) == RCNN.parameters


def test_regions_are_warped_to_one_size_with_what_is_around_them() -> None:
    x_BCHW = torch.zeros(1, 3, 40, 60)
    x_BCHW[:, :, 10:20, 20:50] = 1  # 10 high, 30 wide
    box = torch.tensor([[20.0, 10, 50, 20]])
    tight = warped(x_BCHW, [box], 32, 0)
    assert tight.shape == (1, 3, 32, 32) and float(tight[:, :, 1:-1, 1:-1].min()) > 0.9
    wide = warped(x_BCHW, [box], 32, 4)[0, 0]
    assert float(wide[6:-6, 6:-6].min()) == 1
    assert float(wide[:3].max()) == float(wide[-3:].max()) == float(wide[:, :3].max()) == 0
    corner = warped(x_BCHW + 5, [torch.tensor([[0.0, 0, 10, 10]])], 32, 8)[0, 0]
    assert float(corner[:6, :6].max()) == 0 and float(corner[10:, 10:].min()) >= 5


def test_the_net_runs_once_for_every_proposal() -> None:
    task = RCNN(**SMALL)
    models = task.models()
    seen: list[int] = []
    models["net"].vgg.layers[0].register_forward_hook(lambda *call: seen.append(len(call[1][0])))  # type: ignore[index, union-attr]
    x_BCHW, *_ = next(iter(task.batches("val")))
    for model in models.values():
        model.eval()
    task.found(models, x_BCHW[:3])
    assert sum(seen) == sum(map(len, task.candidates(models, x_BCHW[:3]))) > 100


def test_each_stage_asks_something_of_its_own_group_alone() -> None:
    task = RCNN(**SMALL)
    models = task.models()
    asked = []
    for number in (0, 6, 8):
        moved = set()
        for name, terms in task.losses(models, task.batch("train", number)):
            for model in models.values():
                model.zero_grad()
            assert list(terms) == [name], "the same terms in every minibatch"
            added(terms).backward()  # type: ignore[no-untyped-call]
            for part, model in models.items():
                if any(p.grad is not None and bool(p.grad.any()) for p in model.parameters()):
                    moved.add(part)
        asked.append(moved)
    assert asked == [{"net"}, {"svm"}, {"boxes"}]
    assert list(task.groups(models)) == ["net", "svm", "boxes"]


def test_what_learns_from_the_net_does_not_change_it() -> None:
    task = RCNN(**SMALL)
    models = task.models()
    before = {key: value.clone() for key, value in models["net"].state_dict().items()}
    dict(task.losses(models, task.batch("train", 7)))
    assert models["net"].training
    assert all(torch.equal(before[key], v) for key, v in models["net"].state_dict().items())


def test_the_rate_rises_and_falls_in_every_stage() -> None:
    task = RCNN()
    rates = [task.rate(number / 1000) for number in range(1000)]
    peaks = [n for n in range(1, 999) if rates[n - 1] < rates[n] >= rates[n + 1]]
    assert len(peaks) == 3 and peaks[0] < 600 < peaks[1] < 800 < peaks[2]
    assert max(rates[595:600] + rates[600:602] + rates[798:802]) < 0.1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("warped", 30),
        ("context", 8.0),
        ("shares", "0.9 0.2"),
        ("shares", "half"),
        ("scorer", "knn"),
    ],
)
def test_settings_that_cannot_work(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"task.{name}={value} cannot work - allowed: "):
        RCNN(**{name: value})  # type: ignore[arg-type]


@pytest.mark.slow
def test_it_finds_shapes_in_scenes_and_regressors_bring_boxes_nearer() -> None:
    task = RCNN(minibatches=120, shares="0.5 0.2", least=0.0)
    models = trained(task, task.minibatches)
    scores, base = task.score(models, some(task)), task.baselines()
    print(scores, base)
    # A fifth of a run; a whole one reaches 0.94.
    assert scores["box_AP50"] > 0.3 > max(base.values()) + 0.1
    assert scores["recall"] >= 0.9
    still = replace(task, regress=False)
    unmoved = still.score(models, some(still))
    print(unmoved)
    assert scores["box_AP"] > unmoved["box_AP"]

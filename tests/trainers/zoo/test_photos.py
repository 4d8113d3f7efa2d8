"""What zoo/vgg, zoo/inception and zoo/resnet have in common: batches, recipes, answers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from dlplatform.errors import UsageError
from dlplatform.task import find_task
from trainers.blocks.photos import COUNTS, Photos
from trainers.nets.convnet import parameter_count

NAMES = ("zoo/vgg", "zoo/inception", "zoo/resnet")
RECIPES = Path(__file__).parents[3] / "configs" / "experiment"


@pytest.fixture(params=NAMES)
def task(request: pytest.FixtureRequest) -> Photos:
    torch.set_num_threads(1)
    found = find_task(request.param)
    assert issubclass(found, Photos)
    return found()


def test_the_parameters_are_as_listed(task: Photos) -> None:
    net = task.models()["net"]
    assert parameter_count(net) == task.parameters
    assert task.source and task.expected
    assert net.eval()(*task.example()).shape == (1, 10)


def test_minibatches_are_a_pure_function_of_seed_and_number(task: Photos) -> None:
    x_BCHW, labels = task.batch("train", 5)
    assert x_BCHW.shape == (task.batch_size, 3, 32, 32) and labels.shape == (task.batch_size,)
    assert torch.equal(x_BCHW, task.batch("train", 5)[0])
    assert not torch.equal(x_BCHW, task.batch("train", 6)[0])
    assert not torch.equal(x_BCHW, type(task)(seed=1).batch("train", 5)[0])
    plain_BCHW, same = type(task)(augment=False).batch("train", 5)
    assert torch.equal(labels, same) and not torch.equal(x_BCHW, plain_BCHW)


def test_every_part_has_all_its_pictures(task: Photos) -> None:
    for split, count in COUNTS.items():
        labels = torch.cat([labels for _, labels in task.batches(split)])
        assert len(labels) == count and labels.bincount().tolist() == [count // 10] * 10
    with pytest.raises(UsageError, match=r"task.split=dev cannot work - allowed: train, val, test"):
        task.samples("dev")


def test_predict_names_what_is_in_a_file(task: Photos, tmp_path: Path) -> None:
    Image.new("RGB", (300, 200), (200, 30, 30)).save(tmp_path / "a.jpg")
    answer = task.predict(task.models(), tmp_path / "a.jpg")
    assert answer["class"] in task.samples("test").names and 0.1 <= answer["confidence"] <= 1
    (tmp_path / "b.jpg").write_text("no picture")
    with pytest.raises(UsageError, match=r"b.jpg cannot be read as an image"):
        task.predict(task.models(), tmp_path / "b.jpg")


def test_recipes_are_for_the_task_and_its_fields() -> None:
    for name in NAMES:
        for end in ("", "_full"):
            path = RECIPES / f"{name}{end}.yaml"
            recipe = yaml.safe_load(path.read_text())
            assert {"override /task": name} in recipe["defaults"]
            full = find_task(name)(**recipe.get("task", {}))
            assert isinstance(full, Photos) and full.side == (224 if end else 32)
            assert f"dlp train experiment={name}{end}" in path.read_text()


def test_the_command_line_knows_the_tasks_without_torch() -> None:
    code = "import sys, dlplatform.task as t; t.tasks(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0

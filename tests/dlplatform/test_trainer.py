"""The one loop: what a run leaves behind, options, resuming, stopping, diverging."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path

import pytest
import tinytask
import torch
from PIL import Image
from runs import alone, equal, state, weights, well
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tinyjobs import at, run, settings
from tinytask import recorded

from dlplatform.checkpoint import load_models, make_task
from dlplatform.memorybox.process import Boxes
from dlplatform.trainer import Trainer
from dlplatform.world import World

RULES = ["ssgd", "asgd", "easgd", "hybrid"]


# -- what a run leaves behind ---------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    before = signal.getsignal(signal.SIGTERM)
    score = alone(folder, 60, slow_s=0.02, rule="easgd", run={"progress": "plain"})
    signal.signal(signal.SIGTERM, before)
    assert score > 0.8
    return folder


def test_result_and_picture(finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    assert result["score"] == result["test"]["accuracy"] > 0.8
    assert (result["task"], result["rule"], result["minibatches"]) == ("test/points", "easgd", 60)
    assert len(result["validation"]) == 10
    with Image.open(finished / "result.png") as image:
        assert min(image.size) > 400
        assert len(image.convert("RGB").getcolors(1 << 24)) > 50  # type: ignore[arg-type]


def test_metrics_hold_the_promised_figures(finished: Path) -> None:
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    tags = {tag for row in rows for tag in row}
    assert tags >= {
        *("train/loss", "val/accuracy", "time/step_s", "time/exchange_s"),
        *("sync/staleness", "sync/distance", "sync/bytes", "box/0/GBps"),
    }
    places = [row["minibatch"] for row in rows]
    assert places == sorted(places)
    assert places[-1] == 60
    assert all(math.isfinite(value) for row in rows for value in row.values())
    steps = [row for row in rows if "time/step_s" in row]
    assert all(row["time/step_s"] >= 0.02 for row in steps)
    assert steps[0]["train/loss"] > steps[-1]["train/loss"]


def test_tensorboard_holds_the_same_and_the_pictures(finished: Path) -> None:
    board = EventAccumulator(str(finished / "tensorboard"))
    board.Reload()
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    tags = {tag for row in rows for tag in row} - {"minibatch"}
    assert set(board.Tags()["scalars"]) >= tags
    wanted = [(row["minibatch"], row["val/accuracy"]) for row in rows if "val/accuracy" in row]
    seen = [(event.step, event.value) for event in board.Scalars("val/accuracy")]
    assert [step for step, _ in seen] == [step for step, _ in wanted]
    assert [v for _, v in seen] == pytest.approx([v for _, v in wanted])
    assert "val/prediction" in board.Tags()["images"]


def test_scores_alone(tmp_path: Path) -> None:
    score = alone(tmp_path, 60, rule="easgd", run={"extras": False})
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["score"], result["baselines"]) == (score, {}) and score > 0.8
    assert "val/accuracy" in (tmp_path / "metrics.jsonl").read_text()
    assert not (tmp_path / "result.png").exists() and not (tmp_path / "tensorboard").exists()


def test_networks_come_back_in_a_fresh_process(finished: Path, tmp_path: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    task, models = load_models(finished)
    assert task.score(models, task.batches("test"))["accuracy"] == result["score"]
    assert not any(model.training for model in models.values())


def test_checkpoints_are_few_and_whole(finished: Path) -> None:
    home = finished / "checkpoints"
    names = sorted(path.name for path in home.iterdir())
    assert {"best", "latest"} <= set(names)
    assert len(names) <= 4
    assert state(finished)["position"] == 60
    for link in ("best", "latest"):
        assert {path.suffix for path in (home / link).iterdir()} == {".json", ".safetensors"}


# -- options --------------------------------------------------------------------------------


def test_a_run_repeats_bit_by_bit_and_depends_on_the_seed(tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        alone(tmp_path / name, 20, dropout=0.5, seed=seed)
    assert equal(weights(tmp_path / "one"), weights(tmp_path / "same"))
    assert not equal(weights(tmp_path / "one"), weights(tmp_path / "other"))


def test_a_step_traces_no_stacks_for_devices_that_are_not_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``torch.manual_seed`` does, each time for each kind of device."""
    traced: list[int] = []
    monkeypatch.setattr("traceback.format_stack", lambda *_: traced.append(1) or [])
    alone(tmp_path, 40)
    assert len(traced) < 40


def test_clip_bounds_the_norm_of_each_step(tmp_path: Path) -> None:
    alone(tmp_path / "free", 1, optimizer_name="plain", lr=1.0)
    alone(tmp_path / "clipped", 1, optimizer_name="plain", lr=1.0, run={"clip": 0.01})
    begin = Trainer(settings(tmp_path / "begin"), World()).models["net"].state_dict()
    moved = {
        name: sum(
            float((tensor - begin[key.removeprefix("net.")]).square().sum())
            for key, tensor in weights(tmp_path / name).items()
        )
        ** 0.5
        for name in ("free", "clipped")
    }
    assert moved["free"] > 0.1
    assert moved["clipped"] == pytest.approx(0.01, rel=1e-4)


def test_ema_judges_the_average_of_the_weights(tmp_path: Path) -> None:
    trainer = Trainer(settings(tmp_path, run={"minibatches": 5, "ema": 0.5}), World())
    group, _ = trainer.groups["main"]
    average, step, seen = group.weight.clone(), trainer.step, []

    def spy(number: int) -> float:
        value = step(number)
        average.lerp_(group.weight, 0.5)
        seen.append(number)
        return value

    trainer.step = spy  # type: ignore[method-assign]
    trainer.fit()
    assert seen == list(range(5))
    assert torch.equal(trainer.judge.groups["main"].weight, average)
    assert not torch.equal(group.weight, average)


def test_bf16_trains_with_fp32_weights(tmp_path: Path) -> None:
    trainer = Trainer(settings(tmp_path, run={"minibatches": 60, "precision": "bf16"}), World())
    kinds = set()
    hook = trainer.models["net"][0].register_forward_hook(  # type: ignore[index]
        lambda module, inputs, output: kinds.add((output.dtype, module.training))
    )
    assert trainer.fit() > 0.7
    hook.remove()
    assert kinds == {(torch.bfloat16, True)}
    assert {tensor.dtype for tensor in weights(tmp_path).values()} == {torch.float32}


def test_the_schedule_follows_the_minibatches_of_the_job(tmp_path: Path) -> None:
    trainer = Trainer(settings(tmp_path, falling=True, run={"minibatches": 4}), World())
    rates = []
    trainer.optimizers["main"].register_step_pre_hook(
        lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"])
    )
    trainer.fit()
    assert rates == pytest.approx([0.1 * (1 - n / 4) for n in (1, 2, 3, 4)])


@pytest.mark.parametrize("asked", [None, 7])
def test_a_task_knows_how_long_the_run_is(asked: int | None) -> None:
    """Stages of zoo/nic and others begin after a share of the run, however long it was told."""
    task = make_task({"name": "zoo/nic", "seed": 0}, asked)
    assert task.minibatches == (asked or 2500)  # type: ignore[attr-defined]
    assert isinstance(make_task({"name": "test/points", "seed": 0}, asked), tinytask.Points)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["test/rivals", "test/tied"])
def test_odd_tasks_train_under_every_rule(task: str, tmp_path: Path, boxes: Boxes) -> None:
    for rule in RULES:
        folder = tmp_path / rule
        (folder / "record").mkdir(parents=True)
        config = settings(
            folder, task, rule, cluster=at(boxes), record=str(folder / "record"),
            run={"minibatches": 13, "eval_every": 13},
        )  # fmt: skip
        well(run(config, 2))
        assert recorded(folder / "record") == list(range(13))
        assert all(tensor.isfinite().all() for tensor in weights(folder).values())


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_accumulating_is_as_good_as_more_workers(
    optimizer: str, tmp_path: Path, boxes: Boxes
) -> None:
    """Two workers that add two minibatches each step as four workers with one each do."""
    for name, workers, accumulate in (("two", 2, 2), ("four", 4, 1)):
        options = {"minibatches": 40, "accumulate": accumulate}
        config = settings(
            tmp_path / name, rule="ssgd", run=options, cluster=at(boxes), optimizer_name=optimizer
        )
        well(run(config, workers))
    for one, other in zip(
        weights(tmp_path / "two").values(), weights(tmp_path / "four").values(), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


# -- BatchNorm ------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["ssgd", "easgd"])
def test_running_statistics_are_averaged_over_the_workers(
    rule: str, tmp_path: Path, boxes: Boxes
) -> None:
    config = settings(
        tmp_path, rule=rule, norm=True, cluster=at(boxes), run={"minibatches": 30, "eval_every": 30}
    )
    well(run(config, 2))
    saved = weights(tmp_path)
    assert saved["net.1.running_mean"].abs().sum() > 0
    assert not torch.equal(saved["net.1.running_var"], torch.ones(16))
    task, models = load_models(tmp_path)
    score = task.score(models, task.batches("test"))["accuracy"]
    assert score == json.loads((tmp_path / "result.json").read_text())["score"]


def test_tasks_are_registered() -> None:
    from dlplatform.task import find_task

    assert find_task("test/points") is tinytask.Points

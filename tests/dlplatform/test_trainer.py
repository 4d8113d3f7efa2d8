"""The one loop: what a run leaves behind, options, resuming, stopping, diverging."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tinytask
import torch
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tinyjobs import Ended, Workers, at, run, settings, until
from tinytask import recorded
from torch import Tensor

from dlplatform.checkpoint import load_models
from dlplatform.errors import Diverged
from dlplatform.memorybox.process import Boxes
from dlplatform.trainer import Trainer
from dlplatform.world import World

RULES = ["ssgd", "asgd", "easgd", "hybrid"]


@pytest.fixture(scope="module")
def boxes() -> Iterator[Boxes]:
    with Boxes(2, "shm", "memfd") as started:
        yield started


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def alone(folder: Path, minibatches: int = 40, **more: Any) -> float:
    options = {"minibatches": minibatches, **more.pop("run", {})}
    return Trainer(settings(folder, run=options, **more), World()).fit()


def weights(folder: Path, which: str = "latest") -> dict[str, Tensor]:
    return load_file(folder / "checkpoints" / which / "weights.safetensors")


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def state(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "checkpoints/latest/state.json").read_text())
    return loaded


def well(ended: list[Ended]) -> None:
    assert [one.code for one in ended] == [0] * len(ended), ended


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


# -- resuming -------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "plain"])
def test_resume_alone_continues_bit_by_bit(optimizer: str, tmp_path: Path) -> None:
    fields = {"dropout": 0.5, "optimizer_name": optimizer, "norm": True}
    alone(tmp_path / "whole", 40, **fields)
    trainer = Trainer(settings(tmp_path / "parts", run={"minibatches": 40}, **fields), World())
    stop_at(trainer, 17)
    assert state(tmp_path / "parts")["position"] == 17
    alone(tmp_path / "parts", 40, resume="auto", **fields)
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    history = json.loads((tmp_path / "parts/result.json").read_text())["validation"]
    assert [row["minibatch"] for row in history] == [4, 8, 12, 16, 17, *range(20, 41, 4)]


def stop_at(trainer: Trainer, number: int) -> None:
    """Let a run be stopped by SIGTERM after so many minibatches."""
    from dlplatform.errors import Preempted

    step = trainer.step

    def stepping(one: int) -> float:
        if one == number - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(one)

    trainer.step = stepping  # type: ignore[method-assign]
    with pytest.raises(Preempted, match=f"minibatch {number} of {trainer.total}"):
        trainer.fit()


@pytest.mark.xfail(strict=True, reason="the checkpoint holds the averages alone")
def test_resume_with_averaged_weights_continues_bit_by_bit(tmp_path: Path) -> None:
    options = {"minibatches": 40, "ema": 0.9}
    alone(tmp_path / "whole", 40, run=options)
    stop_at(Trainer(settings(tmp_path / "parts", run=options), World()), 17)
    alone(tmp_path / "parts", 40, run=options, resume="auto")
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_resume_from_another_folder_leaves_it_alone(tmp_path: Path) -> None:
    alone(tmp_path / "first", 20)
    before = weights(tmp_path / "first")
    alone(tmp_path / "second", 40, resume=str(tmp_path / "first"))
    assert equal(before, weights(tmp_path / "first"))
    assert state(tmp_path / "second")["position"] == 40


def test_resume_of_a_finished_run_trains_nothing_more(tmp_path: Path) -> None:
    score = alone(tmp_path, 20)
    before = weights(tmp_path)
    assert alone(tmp_path, 20, resume="auto") == score
    assert equal(before, weights(tmp_path))


def test_resume_of_other_settings_is_one_line(tmp_path: Path) -> None:
    from dlplatform.errors import UsageError

    alone(tmp_path, 4)
    with pytest.raises(UsageError, match=r"checkpoint has \[16, 2\] for net\.0\.weight") as caught:
        alone(tmp_path, 8, resume="auto", width=8)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rule", ["ssgd", "easgd"])
def test_sigterm_to_a_worker_saves_and_resumes(rule: str, tmp_path: Path, boxes: Boxes) -> None:
    """One worker is told; all stop at the same point; the rest is trained at another size."""
    record = tmp_path / "record"
    record.mkdir()
    options = {"minibatches": 60, "eval_every": 60}
    fields = {"record": str(record), "dropout": 0.3, "slow_s": 0.03}
    config = settings(tmp_path / "run", rule=rule, run=options, cluster=at(boxes), **fields)
    workers = Workers(config, 2)
    until(lambda: len(recorded(record)) >= 10 and len(list(record.glob("trained-*"))) == 2)
    os.kill(workers.processes[1].pid or 0, signal.SIGTERM)
    ended = workers.wait()
    assert [one.code for one in ended] == [75, 75], ended
    assert "checkpoint in" in ended[0].words and "resume=auto" in ended[0].words
    position = state(tmp_path / "run")["position"]
    assert 10 <= position < 60
    assert set(recorded(record)) >= set(range(position))
    config = settings(
        tmp_path / "run", rule=rule, run=options, cluster=at(boxes), resume="auto", **fields
    )
    well(run(config, 3))
    assert set(recorded(record)) == set(range(60))
    assert state(tmp_path / "run")["position"] == 60


def test_ssgd_resumed_continues_bit_by_bit(tmp_path: Path, boxes: Boxes) -> None:
    options = {"minibatches": 40, "eval_every": 40}
    fields = {"dropout": 0.5, "slow_s": 0.02, "optimizer_name": "adam"}

    def config(name: str, **more: Any) -> dict[str, Any]:
        where = at(boxes)
        return settings(tmp_path / name, rule="ssgd", run=options, cluster=where, **fields, **more)

    well(run(config("whole"), 2))
    (tmp_path / "record").mkdir()
    workers = Workers(config("parts", record=str(tmp_path / "record")), 2)
    until(lambda: len(recorded(tmp_path / "record")) >= 10)
    os.kill(workers.processes[0].pid or 0, signal.SIGTERM)
    assert [one.code for one in workers.wait()] == [75, 75]
    assert 0 < state(tmp_path / "parts")["position"] < 40
    well(run(config("parts", resume="auto"), 2))
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


# -- what goes wrong ------------------------------------------------------------------------


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match="loss is nan at minibatch") as caught:
        alone(tmp_path, 20, nan_at=7)
    assert caught.value.exit_code == 5
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rule", ["ssgd", "easgd"])
def test_divergence_of_one_worker(rule: str, tmp_path: Path, boxes: Boxes) -> None:
    config = settings(tmp_path, rule=rule, nan_at=9, cluster=at(boxes), run={"minibatches": 40})
    ended = run(config, 2)
    assert 5 in [one.code for one in ended]
    (line,) = [one.words for one in ended if one.code == 5]
    assert "dlp: error: loss is nan" in line
    assert "Traceback" not in line


@pytest.mark.parametrize("rule", ["asgd", "easgd"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_worker_leaves_no_gap(
    rule: str, rank: int, tmp_path: Path, boxes: Boxes
) -> None:
    (tmp_path / "record").mkdir()
    config = settings(
        tmp_path, rule=rule, die_rank=rank, die_at=20, record=str(tmp_path / "record"),
        slow_s=0.005, cluster=at(boxes), run={"minibatches": 60},
    )  # fmt: skip
    ended = run(config, 3)
    codes = [one.code for one in ended]
    assert codes.pop(rank) == -signal.SIGKILL
    assert codes == [0, 0], ended
    assert set(recorded(tmp_path / "record")) == set(range(60))
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["lost_workers"] == [rank]
    assert result["score"] > 0.7


@pytest.mark.parametrize("rule", ["ssgd", "hybrid"])
def test_a_killed_worker_ends_a_synchronous_job(rule: str, tmp_path: Path, boxes: Boxes) -> None:
    config = settings(
        tmp_path, rule=rule, die_rank=1, die_at=10, cluster=at(boxes), run={"minibatches": 60}
    )
    first, second = run(config, 2)
    assert second.code == -signal.SIGKILL
    assert first.code == 4
    (line,) = [one for one in first.words.splitlines() if one.startswith("dlp: error")]
    assert "worker 1 died" in line and "resume=auto" in line


def test_tasks_are_registered() -> None:
    from dlplatform.task import find_task

    assert find_task("test/points") is tinytask.Points

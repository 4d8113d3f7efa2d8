"""The one loop, interrupted: resuming, stopping, diverging, workers that are killed."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import alone, equal, state, weights, well
from tinyjobs import Workers, at, run, settings, until
from tinytask import Points, recorded

from dlplatform.checkpoint import Checkpoint, load_models
from dlplatform.errors import Diverged
from dlplatform.memorybox.process import Boxes
from dlplatform.task import Models
from dlplatform.trainer import Trainer
from dlplatform.world import World

RULES = ["ssgd", "asgd", "easgd", "hybrid"]


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


def test_resume_with_averaged_weights_continues_bit_by_bit(tmp_path: Path) -> None:
    options = {"minibatches": 40, "ema": 0.9}
    alone(tmp_path / "whole", 40, run=options)
    stop_at(Trainer(settings(tmp_path / "parts", run=options), World()), 17)
    alone(tmp_path / "parts", 40, run=options, resume="auto")
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_resume_gives_a_task_back_what_it_kept(tmp_path: Path) -> None:
    tell = {"task": "test/recalling"}
    alone(tmp_path / "whole", 40, **tell)
    trainer = Trainer(settings(tmp_path / "parts", run={"minibatches": 40}, **tell), World())
    stop_at(trainer, 17)
    kept = Checkpoint.load(tmp_path / "parts").kept
    assert torch.equal(kept["mean"], trainer.task.state()["mean"]) and kept["mean"].abs().sum() > 0
    alone(tmp_path / "parts", 40, resume="auto", **tell)
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    ends = [Checkpoint.load(tmp_path / name).kept["mean"] for name in ("whole", "parts")]
    assert torch.equal(*ends)


def test_a_task_that_keeps_nothing_has_no_file_for_it(tmp_path: Path) -> None:
    alone(tmp_path, 8)
    names = {file.name for file in (tmp_path / "checkpoints/latest").iterdir()}
    assert names == {"weights.safetensors", "moments.safetensors", "state.json"}
    assert Checkpoint.load(tmp_path).kept == {}


def test_resume_from_another_folder_leaves_it_alone(tmp_path: Path) -> None:
    alone(tmp_path / "first", 20)
    before = weights(tmp_path / "first")
    alone(tmp_path / "second", 40, resume=str(tmp_path / "first"))
    assert equal(before, weights(tmp_path / "first"))
    assert state(tmp_path / "second")["position"] == 40


def test_a_run_begins_with_anothers_weights_and_goes_on_without_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone(tmp_path / "first", 20)
    tell = {"start": str(tmp_path / "first"), "run": {"progress": "plain"}}
    alone(tmp_path / "second", 8, lr=0.0, seed=5, **tell)
    assert f"\nit begins as {tmp_path / 'first'}\n" in capsys.readouterr().out
    assert equal(weights(tmp_path / "first"), weights(tmp_path / "second"))
    (tmp_path / "first").rename(tmp_path / "gone")
    alone(tmp_path / "second", 16, resume="auto", lr=0.0, **tell)
    assert state(tmp_path / "second")["position"] == 16
    assert "it begins as" not in capsys.readouterr().out
    task, _ = load_models(tmp_path / "second")
    assert task.start == tell["start"]  # type: ignore[attr-defined]


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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["asgd", "easgd"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_worker_leaves_no_gap(rule: str, rank: int, tmp_path: Path, boxes: Boxes) -> None:
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


@pytest.mark.parametrize("rule", ["diloco", "adiloco", "halos", "dcasgd"])
def test_what_a_rule_keeps_in_the_boxes_is_in_the_checkpoint(rule: str, tmp_path: Path) -> None:
    fields = {} if rule == "dcasgd" else {"interval": 4}
    options = {"run": {"minibatches": 40}, "rule": rule, "rule_fields": fields}
    Trainer(settings(tmp_path, **options), World()).fit()  # type: ignore[arg-type]
    saved = Checkpoint.load(tmp_path).moments
    name = "main/rule/square" if rule == "dcasgd" else "main/rule/momentum"
    assert saved[name].count_nonzero() > 10
    options["run"] = {"minibatches": 80}
    again = Trainer(settings(tmp_path, resume="auto", **options), World())  # type: ignore[arg-type]
    (buffer,) = again.rule.states().values()
    held = torch.empty(buffer.length)
    buffer.read(held.data_ptr())
    assert torch.equal(held, saved[name])
    assert again.fit() > 0.5


def test_a_checkpoint_is_the_same_however_weights_lie_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def turned(self: Points) -> Models:
        for p in (models := plain(self))["net"].parameters():
            p.data = p.data.t().contiguous().t()
        return models

    plain, homes = Points.models, (tmp_path / "plain", tmp_path / "turned")
    options: dict[str, Any] = {"rule": "diloco", "rule_fields": {"interval": 4}}
    options |= {"run": {"minibatches": 40}, "optimizer_name": "adam", "lr": 0.01}
    for home, models in zip(homes, (plain, turned), strict=True):
        monkeypatch.setattr(Points, "models", models)
        Trainer(settings(home, **options), World()).fit()
    one, other = (Checkpoint.load(home).moments for home in homes)
    assert one.keys() == other.keys()
    for key in one:
        assert torch.allclose(one[key], other[key], atol=1e-5), key

    options["run"] = {"minibatches": 80}
    again = Trainer(settings(homes[0], resume="auto", **options), World())
    weight = next(iter(again.groups["main"][0].parameters))
    moment = again.optimizers["main"].state[weight]["exp_avg"]
    assert not weight.is_contiguous() and moment.stride() == weight.stride()
    assert torch.equal(moment, one["main/0/exp_avg"])
    assert again.fit() > 0.5
    third = Checkpoint.load(homes[0]).moments["main/rule/momentum"]
    monkeypatch.setattr(Points, "models", plain)
    Trainer(settings(homes[1], resume="auto", **options), World()).fit()
    fourth = Checkpoint.load(homes[1]).moments["main/rule/momentum"]
    assert torch.allclose(third, fourth, atol=1e-3)

"""Stages in the configuration and in whole runs: refusals, two processes, stopping, resuming."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import equal, state, weights, well
from safetensors.torch import load_file
from tinyjobs import Workers, at, run, settings, until
from tinytask import Chain, Points, Tied, recorded
from torch import Tensor, nn

from dlplatform import cli
from dlplatform.errors import UsageError
from dlplatform.memorybox.process import Boxes
from dlplatform.pipeline.cut import Cut
from dlplatform.pipeline.pieces import pieces, samples
from dlplatform.task import Models, Split
from dlplatform.world import World

TRAIN = ["train", "task=zoo/digits", "rule=ssgd", "--dry-run"]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["stages=2", "workers=3"], "stages=2 of 3 worker(s) - allowed: workers a multiple of"),
        (["stages=2"], "do: workers=2"),
        (["stages=0"], "stages=0 cannot work - allowed: 1 to 64"),
        (["stages=2", "workers=2", "run.accumulate=2"], "run.accumulate=2 with stages=2"),
        (["stages=2", "workers=2", "run.compile=true"], "run.compile=True with stages=2"),
        (["stages=2", "workers=2", "rule.bucket_mb=4"], "rule.bucket_mb=4.0 with stages=2"),
        (["pipeline.schedule=gpipe"], "pipeline.schedule=gpipe cannot work - allowed: 1f1b, async"),
        (["pipeline.microbatches=0"], "pipeline.microbatches=0 cannot work"),
    ],
)
def test_what_cannot_work_is_one_line(
    words: list[str], error: str, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.main([*TRAIN, f"run.dir={tmp_path}", *words]) == 2
    err = capfd.readouterr().err
    assert error in err and err.count("\n") == 1


def test_a_job_in_stages_is_understood(tmp_path: Path) -> None:
    assert cli.main([*TRAIN, f"run.dir={tmp_path}", "stages=2", "workers=4"]) == 0


def test_the_help_knows_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    assert "stages=1" in text and "pipeline.schedule=1f1b" in text


def test_a_task_that_is_not_made_for_it_says_so() -> None:
    with pytest.raises(UsageError, match="stages=2 of a Points task, which is not made"):
        Points().split({}, 2)


# -- places -----------------------------------------------------------------------------------


def test_neighbours_form_pipelines() -> None:
    cuts = [Cut(Chain(), World(rank, 6, rank, 6), 3) for rank in range(6)]
    assert [cut.stage for cut in cuts] == [0, 1, 2, 0, 1, 2]
    assert [cut.pipeline for cut in cuts] == [0, 0, 0, 1, 1, 1]
    assert [cut.hands_over for cut in cuts] == [False, True, True, False, False, False]


def test_every_weight_belongs_to_one_stage() -> None:
    task = Chain()
    models = task.models()
    groups = [Cut(task, World(rank, 2), 2).groups(models) for rank in range(2)]
    assert [list(group) for group in groups] == [["main/stage0"], ["main/stage1"]]
    mine = [p for group in groups for parameters in group.values() for p in parameters]
    assert set(mine) == set(models["net"].parameters()) and len(mine) == len(set(mine))


def test_moments_have_the_names_of_the_whole_network() -> None:
    task = Chain()
    models, cut = task.models(), Cut(task, World(1, 2), 2)
    moments = {"main/stage1/0/exp_avg": torch.ones(1), "main/stage1/raw/weight": torch.ones(2)}
    outside = cut.outward(models, moments)
    assert set(outside) == {"main/4/exp_avg", "main/stage1/raw/weight"}
    assert set(cut.inward(models, outside)) == set(moments)


class TiedInStages(Tied):
    """Two stages that share a weight."""

    def split(self, models: Models, count: int) -> Split:
        layers = list(models["net"].children())
        return Split(
            [nn.Sequential(*layers[:3]), nn.Sequential(*layers[3:])],
            inputs=lambda batch: batch[0],
            loss=lambda logits, batch: logits.sum(),
        )


def test_weights_tied_across_a_cut_are_refused() -> None:
    task = TiedInStages()
    with pytest.raises(UsageError, match=r"each weight in one stage - do: untie weights"):
        Cut(task, World(0, 2), 2).groups(task.models())


# -- micro-batches ----------------------------------------------------------------------------


def test_pieces_follow_the_shape_of_the_batch() -> None:
    batch = {"x": torch.arange(10), "y": [torch.arange(20).view(10, 2), "name"]}
    parts: list[dict[str, Any]] = pieces(batch, 3)
    assert [samples(part) for part in parts] == [4, 3, 3]
    assert torch.equal(torch.cat([part["x"] for part in parts]), batch["x"])  # type: ignore[arg-type]
    assert all(part["y"][1] == "name" and part["y"][0].shape[1] == 2 for part in parts)
    (whole,) = pieces(batch, 1)
    assert torch.equal(whole["x"], batch["x"])  # type: ignore[arg-type]


def test_more_micro_batches_than_samples_are_refused() -> None:
    with pytest.raises(UsageError, match="microbatches=4 of a minibatch of 3 - allowed"):
        pieces((torch.zeros(3, 2), torch.zeros(3)), 4)


# -- whole runs -------------------------------------------------------------------------------


def job(folder: Path, boxes: Boxes, stages: int, workers: int, **more: Any) -> dict[str, Any]:
    """Return the settings of a job in stages."""
    options = {"minibatches": 60, "eval_every": 20, **more.pop("run", {})}
    pipeline = {"schedule": more.pop("schedule", "1f1b"), "microbatches": 1}
    more = {"rule": "ssgd", "optimizer_name": "adam", **more}
    given = settings(folder, "test/chain", run=options, cluster=at(boxes), **more)
    return given | {"stages": stages, "workers": workers, "pipeline": pipeline}


def moments(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "checkpoints/latest/moments.safetensors")


def test_stopped_and_resumed_in_stages_and_without(tmp_path: Path, boxes: Boxes) -> None:
    """SIGTERM to the second stage stops both; what follows equals a run that nobody stopped."""
    well(run(job(tmp_path / "whole", boxes, 1, 1), 1))
    record = tmp_path / "record"
    record.mkdir()
    slow = {"slow_s": 0.03, "record": str(record)}
    workers = Workers(job(tmp_path / "cut", boxes, 2, 2, **slow), 2)
    until(lambda: len(recorded(record)) >= 20)
    os.kill(workers.processes[1].pid or 0, signal.SIGTERM)
    assert [one.code for one in workers.wait()] == [75, 75]
    position = state(tmp_path / "cut")["position"]
    assert 5 <= position < 60
    well(run(job(tmp_path / "cut", boxes, 2, 2, resume="auto"), 2))
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    assert equal(moments(tmp_path / "whole"), moments(tmp_path / "cut"))


@pytest.mark.slow
def test_a_checkpoint_goes_on_with_any_number_of_stages(tmp_path: Path, boxes: Boxes) -> None:
    def train(name: str, *stages: int) -> dict[str, Tensor]:
        for number, count in enumerate(stages):
            options = {"minibatches": 30 * (number + 1)}
            resume = "auto" if number else ""
            folder = tmp_path / name
            well(run(job(folder, boxes, count, count, run=options, resume=resume), count))
        return weights(tmp_path / name)

    whole = train("whole", 1, 1)
    assert equal(whole, train("cut", 2, 4))
    assert equal(whole, train("uncut", 2, 1))


@pytest.mark.slow
def test_async_stops_and_resumes(tmp_path: Path, boxes: Boxes) -> None:
    record = tmp_path / "record"
    record.mkdir()
    fields = {"slow_s": 0.02, "record": str(record), "schedule": "async", "rule": "asgd"}
    workers = Workers(job(tmp_path / "run", boxes, 2, 4, **fields), 4)
    until(lambda: len(recorded(record)) >= 20)
    os.kill(workers.processes[2].pid or 0, signal.SIGTERM)
    assert [one.code for one in workers.wait()] == [75] * 4
    well(run(job(tmp_path / "run", boxes, 2, 4, **fields, resume="auto"), 4))
    assert set(recorded(record)) == set(range(60))
    assert state(tmp_path / "run")["position"] == 60


@pytest.mark.slow
def test_a_real_command_trains_stops_and_goes_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "task=zoo/digits", "task.net=lstm", "rule=ssgd", "stages=2", "workers=2"]
    words += [f"run.dir={tmp_path / 'run'}", "run.progress=plain", "run.extras=false"]
    assert cli.main([*words, "run.minibatches=40"]) == 0
    out = capfd.readouterr().out
    assert "1 pipeline(s) x 2 stages, 1f1b, 4 micro-batch(es)" in out
    assert "workers=2 stages=2" in out
    assert cli.main([*words, "run.minibatches=60", "resume=auto"]) == 0
    assert "60 minibatches from 40" in capfd.readouterr().out
    assert state(tmp_path / "run")["position"] == 60

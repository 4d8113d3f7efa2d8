"""The table, the figures and the picture of a sweep, from what its jobs left in their folders."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dlplatform import cli
from dlplatform.errors import PlatformError, UsageError
from launch import compose
from launch.sweep import jobs, summary

compose.register()


def job(root: Path, number: int, words: list[str], score: float | None, **more: Any) -> Path:
    folder = root / str(number)
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text("".join(f"- {word}\n" for word in words))
    if score is not None:
        history = [{"minibatch": 10 * n + number % 3, "score": score * n / 3} for n in range(1, 4)]
        result = {
            "task": "zoo/digits",
            "primary": "accuracy",
            "score": score,
            "seconds": 2.0 + number,
        }
        (folder / "result.json").write_text(json.dumps({**result, "validation": history, **more}))
    return folder


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two rules with three seeds; one job failed and one has not ended."""
    root = tmp_path / "sweep"
    for number, score in enumerate((0.9, 0.8, 0.7)):
        job(root, number, ["workers=2", "rule=ssgd", f"seed={number}"], score)
    job(root, 3, ["workers=2", "rule=easgd", "seed=0"], 0.95)
    failed = job(root, 4, ["workers=2", "rule=easgd", "seed=1"], None)
    (failed / "error.json").write_text(json.dumps({"exit": 5, "error": "loss is nan - do: x"}))
    job(root, 10, ["workers=2", "rule=easgd", "seed=2"], None)
    return root


def test_mean_and_spread_over_seeds(sweep: Path) -> None:
    rows = summary.collect(sweep)
    assert [row.number for row in rows] == [0, 1, 2, 3, 4, 10]
    assert [row.note for row in rows[4:]] == ["loss is nan - do: x", "no result"]
    first, second = summary.groups(rows)
    assert (first.words, first.scores, first.mean) == ("rule=easgd", [0.95], 0.95)
    assert math.isnan(first.spread)
    assert second.words == "rule=ssgd"
    assert second.mean == pytest.approx(0.8)
    assert second.spread == pytest.approx(0.1)
    assert second.seconds == pytest.approx(3.0)
    assert summary.figures(second) == ["0.8000", "0.1000", "0.7000", "0.9000", "3.0"]


def test_the_verb_sums_up(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sweep", str(sweep)]) == 0
    out = capsys.readouterr().out
    for words in ("rule=easgd seed=1", "loss is nan", "workers=2", "0.8000", "standard deviation"):
        assert words in out
    rows = list(csv.DictReader((sweep / "sweep.csv").open()))
    assert [row["job"] for row in rows] == ["1", "2", "3", "4", "5", "11"]
    assert (rows[1]["rule"], rows[1]["seed"], rows[1]["score"]) == ("ssgd", "1", "0.8")
    assert rows[4]["note"] == "loss is nan - do: x"
    with Image.open(sweep / "sweep.png") as image:
        assert image.width > 1000
        assert (
            len(
                {
                    image.getpixel((x, y))
                    for x in range(0, image.width, 7)
                    for y in range(0, image.height, 7)
                }
            )
            > 5
        )


def test_tasks_are_ranked_by_themselves(tmp_path: Path) -> None:
    for number, (task, rule, score) in enumerate(
        [("a", "ssgd", 0.5), ("a", "easgd", 0.6), ("b", "ssgd", 0.9), ("b", "easgd", 0.8)]
    ):
        job(tmp_path, number, [f"task={task}", f"rule={rule}"], score, task=task)
    order = [group.words for group in summary.groups(summary.collect(tmp_path))]
    assert order == [
        *("task=a rule=easgd", "task=a rule=ssgd", "task=b rule=ssgd", "task=b rule=easgd"),
    ]
    assert jobs.conclude(tmp_path)
    assert (tmp_path / "sweep.png").exists()


def test_nothing_to_draw_is_no_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job(tmp_path, 0, ["seed=0"], None)
    (tmp_path / "0" / "slurm.log").write_text("words\ndlp: error: no box - allowed\n")
    assert [row.note for row in jobs.conclude(tmp_path)] == ["no box - allowed"]
    assert "picture" not in capsys.readouterr().out


def test_a_folder_that_is_no_sweep_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["sweep", str(tmp_path / "none")]) == 2
    assert "is not the folder of a sweep" in capsys.readouterr().err


def test_the_first_failure_ends_a_sweep_with_its_code(sweep: Path) -> None:
    with pytest.raises(PlatformError) as caught:
        jobs.raise_first(summary.collect(sweep))
    assert caught.value.exit_code == 5
    assert str(caught.value) == f"loss is nan - do: x [job 5, {sweep / '4'}]"


def checked(*words: str, wait: bool = True) -> bool:
    sweep = compose.parse(["task=zoo/digits", *words])
    return jobs.check(sweep, compose.compose(sweep.samples()[0]), wait)


def test_what_a_sweeper_cannot_do_is_refused() -> None:
    assert checked("seed=0,1")
    with pytest.raises(UsageError, match=r"rule.rate=interval\(0.1,0.5\) has no end of values"):
        checked("rule=easgd", "rule.rate=interval(0.1,0.5)")
    optuna = ("rule=easgd", "rule.rate=interval(0.1,0.5)", "hydra/sweeper=optuna")
    with pytest.raises(UsageError, match="direction=minimize - allowed: maximize"):
        checked(*optuna)
    assert not checked(*optuna, "hydra.sweeper.direction=maximize")
    with pytest.raises(UsageError, match="dlp submit with OptunaSweeper and BasicLauncher"):
        checked(*optuna, "hydra.sweeper.direction=maximize", wait=False)


def test_an_interval_is_checked_at_its_ends() -> None:
    sweep = compose.parse(["rule.rate=interval(0.1,0.5)", "seed=0,1", "rule=easgd"])
    assert sweep.jobs() == []
    assert sweep.swept[0].values == ("rule.rate=0.1", "rule.rate=0.5")
    assert len(sweep.samples()) == 3


@pytest.mark.slow
def test_optuna_looks_for_a_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess
    import sys

    words = ("task=zoo/digits", "sweep=optuna", "hydra.sweeper.n_trials=2", "workers=1")
    short = ("run.minibatches=8", "run.eval_every=8", "task.augment=false", "run.extras=false")
    line = [sys.executable, "-m", "dlplatform.cli", "train", *words, *short]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    (best,) = tmp_path.glob("multirun/*/*/optimization_results.yaml")
    assert "best_params:\n  rule.rate: 0." in best.read_text()
    scores = [row.score or 0.0 for row in summary.collect(best.parent)]
    assert len(scores) == 2
    assert f"best_value: {max(scores)}" in best.read_text()

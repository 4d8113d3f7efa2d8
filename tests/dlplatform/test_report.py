"""Report: figures, and a picture that is worth a look."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dlplatform import report
from dlplatform.report import Pace

RESULT: dict[str, Any] = {
    "task": "zoo/digits",
    "rule": "easgd",
    "workers": 4,
    "boxes": 2,
    "minibatches": 100,
    "primary": "accuracy",
    "score": 0.9,
    "baselines": {"chance": 0.1, "linear": 0.8},
}
HISTORY = [{"minibatch": 50.0, "score": 0.7}, {"minibatch": 100.0, "score": 0.9}]


def draw(folder: Path, rows: list[dict[str, float]], image: Image.Image | None) -> Any:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = report.picture(folder, HISTORY, image, RESULT)
    with Image.open(path) as drawn:
        return np.asarray(drawn.convert("RGB"))


def test_curves_are_left_and_the_predictions_right(tmp_path: Path) -> None:
    rows = [{"minibatch": float(n), "train/loss": 2.0 / n} for n in range(1, 101)]
    red = Image.new("RGB", (60, 60), (250, 10, 10))
    pixels = draw(tmp_path, rows, red)
    half = pixels.shape[1] // 2
    reds = (pixels == (250, 10, 10)).all(axis=2)
    assert reds[:, half:].sum() > 10_000
    assert reds[:, : half - 100].sum() == 0
    assert (pixels[:, :half] < 200).any(axis=2).sum() > 1000


@pytest.mark.parametrize("rows", [[], [{"minibatch": 10.0, "val/accuracy": 0.5}]])
def test_a_run_too_short_for_a_curve_still_has_a_picture(
    rows: list[dict[str, float]], tmp_path: Path
) -> None:
    assert draw(tmp_path, rows, None).std() > 5


def test_pace_counts_and_is_due_after_a_while() -> None:
    pace = Pace(time.monotonic() - 10, 0)
    assert not pace.due()
    pace.add(2.0)
    pace.add(4.0)
    assert pace.due()
    assert (pace.steps, pace.loss) == (2, 6.0)
    assert not Pace(time.monotonic(), 0, steps=1).due()


def job(seconds: float, position: int) -> Any:
    rule = SimpleNamespace(report=lambda: {"sync/staleness": 3.0})
    group = SimpleNamespace(length=1000)
    work = SimpleNamespace(position=position)
    cluster = SimpleNamespace(transports=[None, None], ranks=lambda: range(2))
    groups = {"main": (group, rule)}
    return SimpleNamespace(seconds=seconds, work=work, groups=groups, cluster=cluster, size=2)


def test_figures_are_means_since_the_last_tick() -> None:
    one = job(seconds=1.0, position=30)
    values = report.figures(one, Pace(time.monotonic() - 2.0, 10, steps=4, loss=8.0))
    assert values["train/loss"] == 2.0
    assert values["time/step_s"] == pytest.approx(0.5, rel=0.05)
    assert values["time/exchange_s"] == 0.25
    assert values["time/minibatches_per_s"] == pytest.approx(10.0, rel=0.05)
    assert values["sync/bytes"] == 4000
    assert values["sync/staleness"] == 3.0
    assert values["box/0/GBps"] + values["box/1/GBps"] == pytest.approx(8e-6, rel=0.05)
    assert one.seconds == 0
    shown = report.short(values, HISTORY)
    assert shown["loss"] == "2.0000"
    assert shown["val"] == "0.9000"
    assert shown["exchange"] == "50%"

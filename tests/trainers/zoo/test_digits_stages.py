"""zoo/digits in stages: how its networks are cut, and that stages reach the score of the whole."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from liverun import QUICK
from seldom import LONG
from torch import nn

from dlplatform import cli
from dlplatform.errors import UsageError
from trainers.blocks.balance import balanced, multiply_adds
from trainers.nets.convnet import parameter_count
from trainers.nets.recurrent import RowLSTM
from trainers.zoo.digits import Digits

WHOLE = {"cnn": 0.88, "lstm": 0.83}
"""What 240 minibatches of the small CNN, and 400 of the LSTM, reach at least, whole or in stages;
CNNs in 2x2: 0.96 to 0.98 with three seeds."""


@pytest.mark.parametrize("net", ["cnn", "lstm"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_stages_in_a_row_are_the_network(net: str, count: int) -> None:
    task = Digits(net=net)
    models = task.models()
    models["net"].eval()
    x_B1HW, labels = batch = task.batch("train", 0)
    split = task.split(models, count)
    out = split.inputs(batch)
    for stage in split.stages:
        out = stage(out)
    assert torch.equal(out, models["net"](x_B1HW))
    assert torch.equal(split.loss(out, batch), task.loss(models, batch))
    assert len(split.stages) == count and labels.shape == (16,)


@pytest.mark.parametrize(("net", "most"), [("cnn", 4), ("lstm", 3)])
def test_too_many_stages_are_refused(net: str, most: int) -> None:
    task = Digits(net=net)
    with pytest.raises(UsageError, match=rf"stages=9 of a network with {most} places"):
        task.split(task.models(), 9)


def test_multiply_adds_are_counted_by_hand() -> None:
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 64, 10)]
    assert multiply_adds(layers, torch.zeros(1, 1, 8, 8)) == [9 * 4 * 64, 0, 2560]
    (lstm,) = multiply_adds([nn.LSTM(28, 64, batch_first=True)], torch.zeros(1, 28, 28))
    assert lstm == 28 * 4 * 64 * (28 + 64)


def test_balanced_slices_have_the_smallest_largest_sum() -> None:
    assert balanced([5, 1, 1, 5, 2], 2) == [slice(0, 3), slice(3, 5)]
    assert balanced([1, 1, 8], 3) == [slice(0, 1), slice(1, 2), slice(2, 3)]


def test_the_lstm_has_as_many_parameters_as_it_says() -> None:
    said = re.search(r"has ([\d,]+)\s+parameters", RowLSTM.__doc__ or "")
    assert said and parameter_count(RowLSTM()) == int(said[1].replace(",", ""))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("net", ["cnn", pytest.param("lstm", marks=LONG)])
@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["rule=alone"], id="whole", marks=LONG),
        pytest.param(["rule=alone", "workers=2", "stages=2"], id="1f1b", marks=LONG),
        pytest.param(
            ["rule=alone", "workers=2", "stages=2", "pipeline.schedule=async"],
            id="async",
            marks=LONG,
        ),
        pytest.param(["rule=ssgd", "workers=4", "stages=2"], id="2x2"),
    ],
)
def test_stages_reach_the_score_of_the_whole(words: list[str], net: str, tmp_path: Path) -> None:
    fields = [f"task.net={net}", *(QUICK if net == "cnn" else ["task.lr=0.004"])]
    run = [
        f"run.minibatches={240 if net == 'cnn' else 400}",
        f"run.dir={tmp_path}",
        "run.progress=none",
        "run.extras=false",
    ]
    assert cli.main(["train", "task=zoo/digits", *fields, *run, *words]) == 0
    assert json.loads((tmp_path / "result.json").read_text())["score"] >= WHOLE[net]

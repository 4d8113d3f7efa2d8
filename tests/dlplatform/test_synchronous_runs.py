"""Whole runs of synchronous SGD: equal however it is done, saved, resumed, and killed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from seldom import LONG
from synchronous import words
from tinyjobs import at, run, settings
from torch import Tensor

from dlplatform.memorybox.process import Boxes

pytestmark = pytest.mark.slow

WIDE, WORKERS = 1024, 3
MASTER, BUCKETS, BOXES, TORCH = (
    {"optimizer": "master"},
    {"bucket_mb": 0.008},
    {"optimizer": "box", "bucket_mb": 0.008},
    {"inner": "torch"},
)


@pytest.fixture(scope="module")
def remote() -> Iterator[Boxes]:
    with Boxes(2, "tcp", "memfd") as started:
        yield started


def whole(
    folder: Path, boxes: Boxes, fields: dict[str, Any], options: dict[str, Any],
    **more: Any,
) -> None:  # fmt: skip
    """Run a job of processes to its end."""
    config = settings(
        folder, rule="ssgd", cluster=at(boxes), rule_fields=fields,
        run={"minibatches": 40, "eval_every": 20, **options}, width=WIDE,
        **{"falling": True, "optimizer_name": "adam", "lr": 0.01, **more},
    )  # fmt: skip
    ended = run(config, WORKERS)
    assert [one.code for one in ended] == [0] * WORKERS, ended


def saved(folder: Path, which: str = "weights") -> dict[str, Tensor]:
    return load_file(folder / f"checkpoints/latest/{which}.safetensors")


@pytest.mark.parametrize("options", [{"accumulate": 3}, {"clip": 0.1}, {}], ids=words)
@pytest.mark.parametrize("fields", [MASTER, BUCKETS, BOXES], ids=words)
def test_whole_runs_are_equal(
    fields: dict[str, Any], options: dict[str, Any], boxes: Boxes, tmp_path: Path
) -> None:
    whole(tmp_path / "usual", boxes, {}, options)
    whole(tmp_path / "other", boxes, fields, options)
    usual, other = saved(tmp_path / "usual"), saved(tmp_path / "other")
    for name, weight in usual.items():
        torch.testing.assert_close(weight, other[name], rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize("make", ["adam", pytest.param("sgd", marks=LONG)])
@pytest.mark.parametrize("after", ["box", "worker"])
def test_moments_in_the_boxes_are_saved_and_restored(
    after: str, make: str, boxes: Boxes, tmp_path: Path
) -> None:
    """A run by the boxes goes on where it was saved, also with workers that step themselves."""
    options: dict[str, Any] = {"minibatches": 78, "eval_every": 39}
    more = {"optimizer_name": make, "lr": 0.02, "falling": False}
    whole(tmp_path / "usual", boxes, {"optimizer": "worker"}, options, **more)
    folder = tmp_path / "parts"
    whole(folder, boxes, {"optimizer": "box"}, options | {"minibatches": 39}, **more)
    assert saved(folder, "moments").keys() == saved(tmp_path / "usual", "moments").keys()
    assert json.loads((folder / "checkpoints/latest/state.json").read_text())["position"] == 39
    whole(folder, boxes, {"optimizer": after}, options, resume="auto", **more)
    for which in ("weights", "moments"):
        usual, other = saved(tmp_path / "usual", which), saved(folder, which)
        for name, tensor in usual.items():
            torch.testing.assert_close(tensor, other[name], rtol=0, atol=2e-5, msg=name)


@pytest.mark.parametrize(
    ("transport", "fields"),
    [
        ("shm", MASTER),
        ("shm", BUCKETS),
        ("tcp", BUCKETS),
        ("tcp", BOXES),
        ("tcp", TORCH),
    ],
    ids=words,
)
def test_a_process_killed_in_backward_ends_the_job(
    transport: str, fields: dict[str, Any], boxes: Boxes, remote: Boxes, tmp_path: Path
) -> None:
    where = at(boxes if transport == "shm" else remote)
    config = settings(
        tmp_path, rule="ssgd", cluster=where, rule_fields=fields,
        run={"minibatches": 300}, width=WIDE, die_rank=1, die_at=30, die_backward=True,
    )  # fmt: skip
    ended = run(config, WORKERS)
    assert [one.code for one in ended] == [4, -9, 4], ended
    assert "worker 1 died" in ended[0].words and "Traceback" not in ended[0].words

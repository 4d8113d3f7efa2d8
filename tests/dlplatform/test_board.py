"""Board: the same scalars in TensorBoard and in metrics.jsonl."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dlplatform.board import Board, flatten


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    board = Board(tmp_path)
    board.scalars(10, {"train/loss": 0.5, "sync/bytes": 4096.0})
    board.scalars(20, {"train/loss": 0.25})
    board.image("val/prediction", Image.new("L", (8, 6), 200), 20)
    board.hparams({"seed": 3, "task": {"name": "x/y", "list": [1]}}, {"accuracy": 0.75})
    board.close()
    return tmp_path


def test_lines_are_json_with_the_minibatch(folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows == [
        {"minibatch": 10, "train/loss": 0.5, "sync/bytes": 4096.0},
        {"minibatch": 20, "train/loss": 0.25},
    ]


def test_tensorboard_shows_the_same_at_the_same_place(folder: Path) -> None:
    shown = EventAccumulator(str(folder / "tensorboard"))
    shown.Reload()
    seen = [(event.step, event.value) for event in shown.Scalars("train/loss")]
    assert seen == [(10, 0.5), (20, 0.25)]
    (image,) = shown.Images("val/prediction")
    assert (image.width, image.height, image.step) == (8, 6, 20)


def test_settings_and_final_scores_can_be_compared(folder: Path) -> None:
    shown = EventAccumulator(str(folder / "tensorboard"))
    shown.Reload()
    assert shown.Scalars("final/accuracy")[0].value == 0.75
    assert "_hparams_/session_start_info" in shown.summary_metadata


def test_a_line_can_be_read_at_once(tmp_path: Path) -> None:
    board = Board(tmp_path)
    board.scalars(1, {"train/loss": 1.0})
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["minibatch"] == 1
    board.close()


def test_a_second_board_appends(folder: Path) -> None:
    board = Board(folder)
    board.scalars(30, {"train/loss": 0.1})
    board.close()
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 3


def test_settings_are_flattened_by_dots() -> None:
    assert flatten({"a": 1, "b": {"c": {"d": "x"}, "e": None}}) == [
        ("a", 1),
        ("b.c.d", "x"),
        ("b.e", None),
    ]

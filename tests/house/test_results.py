"""What docs/results says that the tasks reach, against what their specifications ask for."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from dlplatform.task import tasks

RESULTS = Path(__file__).parents[2] / "docs" / "results"
RUNS: list[dict[str, Any]] = json.loads((RESULTS / "tasks.json").read_text())["runs"]
NAMES = sorted(n for n, cls in tasks().items() if cls.__module__.startswith("trainers."))
LEAST = {
    "human/sensors": {"macro_f1": 0.9},
    "road/deformable": {"mIoU": 0.75},
    "zoo/digits": {"accuracy": 0.97},
    "zoo/fcn": {"mIoU": 0.7},
    "zoo/inception": {"accuracy": 0.9},
    "zoo/nic": {"bleu4": 0.7, "exact": 0.6},
    "zoo/resnet": {"accuracy": 0.9},
    "zoo/segnet": {"mIoU": 0.7},
    "zoo/style": {"quality": 0.5, "ssim": 0.3},
    "zoo/textgen": {"gain": 2.0},
    "zoo/vgg": {"accuracy": 0.9},
}
"""The least means of one worker's test scores."""
BEFORE = ("untrained", "random", "unadapted_metric")
"""Baselines that have learnt nothing of the task."""
MARGIN = 0.95
"""The share of two synchronous workers' score that other rules have to reach."""


def of(name: str, rule: str) -> list[dict[str, Any]]:
    return [run for run in RUNS if (run["task"], run["rule"]) == (name, rule)]


@pytest.mark.parametrize("name", NAMES)
def test_three_seeds_are_above_untrained_networks_and_every_rule_has_run(name: str) -> None:
    alone = of(name, "alone")
    assert [run["seed"] for run in alone] == [0, 1, 2]
    for run in alone + of(name, "ssgd") + of(name, "easgd") + of(name, "hybrid"):
        first = [run["baselines"][name] for name in BEFORE if name in run["baselines"]]
        assert first and run["score"] > max(first), run["rule"]
    assert all(of(name, rule) for rule in ("ssgd", "easgd", "hybrid"))
    assert f"## {name}" in (RESULTS / "tasks.md").read_text()


@pytest.mark.parametrize("name", LEAST)
def test_scores_are_as_specified(name: str) -> None:
    for score, least in LEAST[name].items():
        assert statistics.mean(run["test"][score] for run in of(name, "alone")) >= least, score


@pytest.mark.parametrize("rule", ["easgd", "hybrid"])
@pytest.mark.parametrize("name", NAMES)
def test_elastic_rules_keep_up_with_synchronous_workers(name: str, rule: str) -> None:
    (one,), (sync,) = of(name, rule), of(name, "ssgd")
    assert one["score"] / sync["score"] >= MARGIN


@pytest.mark.parametrize("name", NAMES)
def test_what_a_task_says_of_itself_was_measured(name: str) -> None:
    said = float(tasks()[name].expected.split()[0])
    assert statistics.mean(run["score"] for run in of(name, "alone")) == pytest.approx(said, 0.03)

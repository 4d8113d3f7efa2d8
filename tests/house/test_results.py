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
NAMES = [name for name, cls in tasks().items() if cls.__module__.startswith("trainers.")]
LEAST = {
    "human/sensors": {"macro_f1": 0.9},
    "road/deformable": {"miou": 0.75},
    "zoo/digits": {"accuracy": 0.97},
    "zoo/fcn": {"miou": 0.7},
    "zoo/inception": {"accuracy": 0.9},
    "zoo/nic": {"bleu4": 0.7, "exact": 0.6},
    "zoo/resnet": {"accuracy": 0.9},
    "zoo/segnet": {"miou": 0.7},
    "zoo/textgen": {"gain": 2.0},
    "zoo/vgg": {"accuracy": 0.9},
}
"""The least means of one worker's test scores."""
MARGIN = 0.95
"""The share of two synchronous workers' score that other rules have to reach."""


def of(name: str, rule: str) -> list[dict[str, Any]]:
    return [run for run in RUNS if (run["task"], run["rule"]) == (name, rule)]


@pytest.mark.parametrize("name", NAMES)
def test_three_seeds_are_above_untrained_networks_and_every_rule_has_run(name: str) -> None:
    alone = of(name, "alone")
    assert [run["seed"] for run in alone] == [0, 1, 2]
    for run in alone + of(name, "ssgd") + of(name, "easgd") + of(name, "hybrid"):
        untrained = [v for k, v in run["baselines"].items() if k in ("untrained", "random")]
        assert untrained and run["score"] > max(untrained), run["rule"]
    assert all(of(name, rule) for rule in ("ssgd", "easgd", "hybrid"))
    assert f"## {name}" in (RESULTS / "tasks.md").read_text()


@pytest.mark.parametrize("name", LEAST)
def test_scores_are_as_specified(name: str) -> None:
    for score, least in LEAST[name].items():
        assert statistics.mean(run["test"][score] for run in of(name, "alone")) >= least, score


@pytest.mark.parametrize("name", NAMES)
def test_what_a_task_says_of_itself_was_measured(name: str) -> None:
    said = float(tasks()[name].expected.split()[0])
    scores = [run["score"] for run in of(name, "alone")]
    spread = max(scores) - min(scores)
    assert min(scores) - spread - 0.02 * abs(said) <= said <= max(scores) + 0.02 * abs(said)

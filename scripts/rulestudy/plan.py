"""Which runs make the study: settings of every rule, learning rates, fleets."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rulestudy.problems import PROBLEMS, TEST_SEEDS, TUNING_SEEDS, Trial

WORKERS = 1, 2, 4, 8, 16
LINKS = {"step_s": 0.01, "latency_s": 1e-4, "worker_rate": 1.25e8, "box_rate": 1.25e9}
"""A step of 10 ms, links of 1 Gbit/s to the workers and 10 Gbit/s to the box."""
ALONE = 0.5, 1.0, 2.0
"""Learning rates of one worker that are tried, beside the problem's own."""
AVERAGES, SLOWER, ADDS = (4.0, 8.0, 16.0), (2.0, 4.0, 8.0, 16.0), (0.25, 0.5, 1.0)
"""The same for 16 workers, by what a rule does with their steps."""


@dataclass(frozen=True)
class Setting:
    """A row of the table: a rule, its settings, the momentum of the workers' SGD, rates to try."""

    rule: str
    fields: dict[str, Any] = field(default_factory=dict)
    momentum: float = 0.0
    factors: tuple[float, ...] = SLOWER


OUTER = {"interval": 4, "momentum": 0.5}
RULES = {
    "ssgd": Setting("ssgd", {}, 0.9, AVERAGES),
    "ssp": Setting("ssp", {"staleness": 3}),
    "asgd": Setting("asgd", factors=ADDS),
    "dcasgd": Setting("dcasgd", factors=ADDS),
    "easgd": Setting("easgd"),
    "easgd, rate 0.2": Setting("easgd", {"rate": 0.2}),
    "eamsgd": Setting("eamsgd"),
    "hybrid": Setting("hybrid", {}, 0.9, AVERAGES),
    "localsgd": Setting("localsgd", {"interval": 4}, 0.9),
    "diloco": Setting("diloco", OUTER),
    "quorum": Setting("quorum", OUTER),
    "adiloco": Setting("adiloco", OUTER),
    "halos": Setting("halos", {"interval": 2, "updates": 4, "momentum": 0.5}),
}
"""By name in the tables."""
TIMES = 4
"""How many times as many minibatches the long runs train."""
DIVERGED = 0.2
"""Accuracy of ten classes that says so."""
STRAGGLERS = {**LINKS, "step_s": [0.04] + [0.01] * 7}
"""One of eight workers computes four times as long."""
WIRES = ("fp32", "bf16", "int8", "topk:0.05")


def fields(name: str, workers: int) -> dict[str, Any]:
    """Return a rule's settings for so many workers; groups have as many members as there are."""
    if name in ("hybrid", "halos"):
        return {**RULES[name].fields, "group_size": {1: 1, 2: 1, 4: 2, 8: 2, 16: 4}[workers]}
    return dict(RULES[name].fields)


def trial(name: str, problem: str, workers: int, factor: float, seed: int, **more: Any) -> Trial:
    """Return one run of a rule as the study sets it."""
    setting = RULES.get(name) or Setting(name)
    given = fields(name, workers) if name in RULES else {}
    return Trial(
        problem, setting.rule, {**given, **more.pop("fields", {})}, workers, factor,
        setting.momentum, seed, fleet=more.pop("fleet", LINKS), **more,
    )  # fmt: skip


def tuning(problem: str) -> dict[str, Trial]:
    """Return the runs that choose learning rates, on validation data of other seeds."""
    tried = [("alone", 1, factor) for factor in ALONE]
    tried += [(name, 16, factor) for name in RULES for factor in RULES[name].factors]
    return {
        f"tune/{problem}/{name}/{factor:g}/{seed}": trial(
            name, problem, workers, factor, seed, split="val"
        )
        for (name, workers, factor), seed in itertools.product(tried, TUNING_SEEDS)
    }


def best(problem: str, name: str, factors: Sequence[float], done: dict[str, Any]) -> float:
    """Return the factor that did best on the tuning seeds; of several the one with less loss."""

    def score(factor: float) -> tuple[float, float]:
        runs = [done[f"tune/{problem}/{name}/{factor:g}/{seed}"] for seed in TUNING_SEEDS]
        return sum(one["accuracy"] for one in runs), -sum(one["loss"] for one in runs)

    return max(factors, key=score)


def chosen(problem: str, name: str, workers: int, done: dict[str, Any]) -> float:
    """Return the best factor of 16 workers, or between alone's and that along the logarithm."""
    one = best(problem, "alone", ALONE, done)
    if name == "alone":
        return one
    many = best(problem, name, RULES[name].factors, done)
    share = {1: 0.0, 2: 0.25, 4: 0.5, 8: 0.75, 16: 1.0}[workers]
    return float(one ** (1 - share) * many**share)


def accuracy(problem: str, done: dict[str, Any]) -> dict[str, Trial]:
    """Return the runs of the table: every rule, number of workers and test seed."""
    runs = {
        f"test/{problem}/alone/1/{seed}": trial(
            "alone", problem, 1, chosen(problem, "alone", 1, done), seed
        )
        for seed in TEST_SEEDS
    }
    for name, workers, seed in itertools.product(RULES, WORKERS, TEST_SEEDS):
        factor = chosen(problem, name, workers, done)
        runs[f"test/{problem}/{name}/{workers}/{seed}"] = trial(
            name, problem, workers, factor, seed
        )
    return runs


def stragglers(problem: str, done: dict[str, Any]) -> dict[str, Trial]:
    """Return runs of eight workers of which one is slow, scored on the way."""
    return {
        f"slow/{problem}/{name}": trial(
            name, problem, 8, chosen(problem, name, 8, done), 0, fleet=STRAGGLERS, every_s=0.25
        )
        for name in RULES
    }


def narrow(problem: str, done: dict[str, Any]) -> dict[str, Trial]:
    """Return runs of eight workers with narrow formats, two seeds each."""
    return {
        f"wire/{problem}/{name}/{wire}/{seed}": trial(
            name, problem, 8, chosen(problem, name, 8, done), seed, fields={"wire": wire}
        )
        for name, wire, seed in itertools.product(
            ("diloco", "adiloco", "halos"), WIRES, TEST_SEEDS[:2]
        )
        if name in RULES
    }


def longer(problem: str, done: dict[str, Any]) -> dict[str, Trial]:
    """Return runs of 16 workers, and of one, that train several times as long."""
    minibatches = TIMES * PROBLEMS[problem].minibatches
    return {
        f"long/{problem}/{name}/{seed}": trial(
            name, problem, workers, steady(problem, name, workers, done), seed,
            minibatches=minibatches,
        )
        for (name, workers), seed in itertools.product(
            [("alone", 1), *((name, 16) for name in RULES)], TEST_SEEDS
        )
    }  # fmt: skip


def steady(problem: str, name: str, workers: int, done: dict[str, Any]) -> float:
    """Return a rule's factor for long runs: half of what was chosen, once a run has diverged."""
    factor = chosen(problem, name, workers, done)
    found = [done.get(f"long/{problem}/{name}/{seed}") for seed in TEST_SEEDS]
    diverged = [one["factor"] < factor or one["accuracy"] < DIVERGED for one in found if one]
    return factor / 2 if any(diverged) else factor

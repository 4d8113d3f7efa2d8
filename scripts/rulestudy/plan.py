"""Which runs make the study: settings of every rule, learning rates, fleets."""

from __future__ import annotations

import itertools
from typing import Any

from rulestudy.problems import TEST_SEEDS, TUNING_SEEDS, Trial

WORKERS = 1, 2, 4, 8, 16
LINKS = {"step_s": 0.01, "latency_s": 1e-4, "worker_rate": 1.25e8, "box_rate": 1.25e9}
"""A step of 10 ms, links of 1 Gbit/s to the workers and 10 Gbit/s to the box."""
FACTORS = {1: (0.5, 1.0, 2.0), 16: (1.0, 2.0, 4.0, 8.0, 16.0)}

Settings = dict[str, tuple[str, dict[str, Any]]]
RULES: Settings = {
    "ssgd": ("ssgd", {}),
    "ssp": ("ssp", {"staleness": 3}),
    "asgd": ("asgd", {}),
    "dcasgd": ("dcasgd", {}),
    "easgd": ("easgd", {}),
    "easgd, rate 0.2": ("easgd", {"rate": 0.2}),
    "eamsgd": ("eamsgd", {}),
    "hybrid": ("hybrid", {}),
    "localsgd": ("localsgd", {"interval": 4}),
    "diloco": ("diloco", {"interval": 4, "momentum": 0.5}),
    "quorum": ("quorum", {"interval": 4, "momentum": 0.5}),
    "adiloco": ("adiloco", {"interval": 4, "momentum": 0.5}),
    "halos": ("halos", {"interval": 2, "updates": 4, "momentum": 0.5}),
}
"""Name in tables: (rule, settings)."""
STRAGGLERS = {**LINKS, "step_s": [0.04] + [0.01] * 7}
"""One of eight workers computes four times as long."""
WIRES = ("fp32", "bf16", "int8", "topk:0.05")


def fields(name: str, workers: int) -> dict[str, Any]:
    """Return a rule's settings for so many workers; groups have as many members as there are."""
    _, given = RULES[name]
    if name in ("hybrid", "halos"):
        return {**given, "group_size": {1: 1, 2: 1, 4: 2, 8: 2, 16: 4}[workers]}
    return dict(given)


def trial(name: str, problem: str, workers: int, factor: float, seed: int, **more: Any) -> Trial:
    """Return one run of a rule as the study sets it."""
    rule = RULES[name][0] if name in RULES else name
    given = fields(name, workers) if name in RULES else {}
    return Trial(
        problem, rule, {**given, **more.pop("fields", {})}, workers, factor, seed=seed,
        fleet=more.pop("fleet", LINKS), **more,
    )  # fmt: skip


def tuning(problem: str) -> dict[str, Trial]:
    """Return the runs that choose learning rates, on validation data of other seeds."""
    runs = {
        f"{name}/{workers}/{factor:g}/{seed}": trial(
            name, problem, workers, factor, seed, split="val"
        )
        for name, workers in itertools.product(RULES, FACTORS)
        for factor, seed in itertools.product(FACTORS[workers], TUNING_SEEDS)
    }
    return {f"tune/{problem}/{key}": one for key, one in runs.items()}


def chosen(problem: str, name: str, workers: int, done: dict[str, Any]) -> float:
    """Return the best factor of 1 and 16 workers, or between them along the logarithm."""
    if name == "alone":
        return 1.0
    best = {}
    for count, factors in FACTORS.items():
        label = f"tune/{problem}/{name}/{count}"
        runs = {f: [done[f"{label}/{f:g}/{seed}"] for seed in TUNING_SEEDS] for f in factors}
        best[count] = max(runs, key=lambda f: sum(one["accuracy"] for one in runs[f]))
    share = {1: 0.0, 2: 0.25, 4: 0.5, 8: 0.75, 16: 1.0}[workers]
    return float(best[1] ** (1 - share) * best[16] ** share)


def accuracy(problem: str, done: dict[str, Any]) -> dict[str, Trial]:
    """Return the runs of the table: every rule, number of workers and test seed."""
    runs = {
        f"test/{problem}/alone/1/{seed}": trial("alone", problem, 1, 1.0, seed)
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
    }

"""The same trials by real processes around a real box over shared memory."""

from __future__ import annotations

import multiprocessing
import os
import time
from dataclasses import replace
from typing import Any

import torch

from dlplatform.job import Job, Place
from dlplatform.memorybox.process import Boxes
from dlplatform.world import World
from rulestudy import plan
from rulestudy.problems import PROBLEMS, TEST_SEEDS, Result, Trial, Worker

PATIENCE_S = 300.0


def one(trial: Trial, place: Place, rank: int, results: Any) -> None:
    """Train as one worker; tell accuracy, loss, seconds and steps."""
    torch.set_num_threads(1)
    problem, begin = PROBLEMS[trial.problem], time.perf_counter()
    total = trial.minibatches or problem.minibatches
    world = World(rank, trial.workers, rank, trial.workers)
    job = Job.open(world, place, total=total)
    worker = Worker(job, trial, problem, problem.data(trial.seed), pause=lambda job: None)
    steps = 0
    while (number := worker.rule.claim(job)) is not None:
        worker.step(number)
        steps += 1
    job.finish()
    job.wait_for_all()
    job.groups.clear()
    results.put((rank, *worker.score(), time.perf_counter() - begin, steps))
    results.close()
    results.join_thread()
    job.close()
    os._exit(0)


def run(trial: Trial) -> Result:
    """Train with processes of this machine; everything is as in the simulation but the clock."""
    context = multiprocessing.get_context("fork")
    PROBLEMS[trial.problem].data(trial.seed)  # loaded once, before the workers are forked
    with Boxes(1, "shm") as boxes:
        place = Place(boxes.addresses, boxes.secret, f"study-{time.time_ns()}")
        results = context.Queue()
        workers = [
            context.Process(target=one, args=(trial, place, rank, results))
            for rank in range(trial.workers)
        ]
        for worker in workers:
            worker.start()
        ended = sorted(results.get(timeout=PATIENCE_S) for _ in workers)
        for worker in workers:
            worker.join(10)
    _, accuracy, loss, seconds, _ = ended[0]
    return Result(accuracy, loss, seconds, 0, 0, [steps for *_, steps in ended], [])


def trials(problem: str, done: dict[str, Any]) -> dict[str, Trial]:
    """Return real runs of 2 and 4 workers under every rule, two test seeds each."""
    found = {}
    for name in plan.RULES:
        for workers in (2, 4):
            factor = plan.chosen(problem, name, workers, done)
            for seed in TEST_SEEDS[:2]:
                key = f"real/{problem}/{name}/{workers}/{seed}"
                found[key] = replace(plan.trial(name, problem, workers, factor, seed), fleet={})
    return found

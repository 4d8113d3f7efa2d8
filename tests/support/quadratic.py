"""Descent on quadratics by workers of a simulated fleet, and what mathematics says about it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from tinyjobs import attach, master
from torch import nn

from dlplatform.job import Job
from dlplatform.transports.fleet import Fleet, compute, simulate

Vector = np.ndarray[Any, Any]
Slope = Callable[[Vector, int, int], Vector]
"""The gradient at x, by x, rank and step."""


class Descent(NamedTuple):
    """What one worker saw: its weights after every step, and the master's at the end."""

    seen: Vector
    master: Vector


def worker(
    job: Job, rule: str, start: Vector, slope: Slope, steps: int, *, lr: float = 1.0,
    before: Callable[[Job, int], object] = lambda job, step: compute(job), **fields: Any,
) -> Descent:  # fmt: skip
    """Descend as one worker: plain SGD, the gradient written by hand."""
    model = nn.ParameterList([nn.Parameter(torch.from_numpy(start.astype(np.float32)))])
    net = attach(job, rule, model, partial(torch.optim.SGD, lr=lr), **fields)
    x, seen = net.group.weight.numpy()[: len(start)], []
    job.cluster.clock.sleep(1e-6 * job.rank)  # from now on turns are taken by rank
    for step in range(steps):
        before(job, step)
        given = np.asarray(slope(x, job.rank, step), np.float32)
        model[0].grad = torch.from_numpy(given.copy())
        net.optimizer.step()
        seen.append(x.copy())
    net.rule.finish()
    job.groups.clear()
    meet(job)
    return Descent(np.array(seen), master(net).numpy()[: len(start)])


def meet(job: Job) -> None:
    """Wait until all workers have come so far."""
    job.cluster.counter("all here").add(1)
    job.cluster.counter("all here").wait(job.size)


def descend(fleet: Fleet, *given: Any, **named: Any) -> list[Descent]:
    """Descend with all workers of a fleet; arguments are those of ``worker``."""
    results = simulate(fleet, lambda job: worker(job, *given, **named)).results
    assert all(result is not None for result in results)
    return [result for result in results if result is not None]


def turn(
    p: int, i: int, eta: float, alpha: float, tau: int, overlap: bool
) -> tuple[Vector, Vector]:
    """Return what worker i's turn does to (x_1 .. x_p, centre), and the variance it adds.

    In line: tau steps, then the exchange. Overlapped: the last exchange's difference is taken off
    with the first step after it, whose gradient was that of the weights before (P-HET).
    """
    step, noise, exchange = np.eye(p + 1), np.zeros((p + 1, p + 1)), np.eye(p + 1)
    step[i, i], noise[i, i] = 1 - eta, eta**2
    exchange[np.ix_([i, p], [i, p])] += [[-alpha, alpha], [alpha, -alpha]]
    first, steps = np.eye(p + 1), tau
    spread = np.zeros_like(noise)
    if overlap:
        first, steps, spread = step + exchange - np.eye(p + 1), tau - 1, noise
    for _ in range(steps):
        first, spread = step @ first, step @ spread @ step.T + noise
    return (first, spread) if overlap else (exchange @ first, exchange @ spread @ exchange.T)


def cycle(p: int, eta: float, alpha: float, tau: int, overlap: bool) -> tuple[Vector, Vector]:
    """Return what a turn of everybody does, and the variance it adds."""
    move, spread = np.eye(p + 1), np.zeros((p + 1, p + 1))
    for i in range(p):
        once, noise = turn(p, i, eta, alpha, tau, overlap)
        move, spread = once @ move, once @ spread @ once.T + noise
    return move, spread


def stationary(move: Vector, spread: Vector) -> Vector:
    """Solve S = M S M' + Q (Lyapunov) by doubling."""
    total = spread
    for _ in range(40):
        total, move = total + move @ total @ move.T, move @ move
    return total


def radius(move: Vector) -> float:
    """Return the largest absolute eigenvalue."""
    return float(np.abs(np.linalg.eigvals(move)).max())

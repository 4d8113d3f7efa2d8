"""What mathematics says about rules on quadratics, kept by the rules under the simulated clock."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from quadratic import Vector, cycle, descend, radius, stationary
from tinyjobs import attach, master, place, together
from torch import nn

from dlplatform.job import Job
from dlplatform.transports.fleet import Fleet, compute

ETAS = {0.05: 0.987, 0.5: 0.857, 1.0: 0.667, 1.5: 0.400, 1.9: 0.095}
"""Rate times curvature, and the largest moving rate that is stable: (4 - 2 eta) / (4 - eta)."""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def growth(path: Vector, window: int) -> Vector:
    """Return by coordinate how the amplitude of the last quarter compares to that before."""
    quarter = len(path) // 4
    assert quarter >= window, "the path shows no whole oscillation"
    late, before = path[-quarter:], path[-2 * quarter : -quarter]
    return np.asarray(np.abs(late).max(0) / np.abs(before).max(0))


# -- delayed gradients ------------------------------------------------------------------------


def delayed(delay: int, eta: Vector, updates: int) -> Vector:
    """Return x after every update of x' = x - eta x_delayed, from 1 on."""
    path = [np.ones_like(eta)]
    for n in range(updates):
        path.append(path[n] - eta * path[max(n - delay, 0)])
    return np.array(path[1:])


@pytest.mark.parametrize("delay", [0, 1, 2, 3, 4, 8, 15])
def test_asgd_is_gradient_descent_with_a_delay(delay: int) -> None:
    """Stable below eta lambda = 2 sin(pi / (2 (2 T + 1))) and not above."""
    bound = 2 * math.sin(math.pi / (2 * (2 * delay + 1)))
    eta = bound * np.array([0.3, 0.9, 0.99, 1.01, 1.1])
    steps = 200
    results = descend(Fleet(delay + 1), "asgd", np.ones(5), lambda x, *_: eta * x, steps)
    path = np.stack([one.seen for one in results], 1).reshape(-1, 5)
    expected = delayed(delay, eta, len(path))
    scale = np.maximum.accumulate(np.abs(expected), 0)
    assert (np.abs(path - expected) <= 2e-4 * scale).all()
    assert (growth(path, 2 * (2 * delay + 1)) > 1).tolist() == [False, False, False, True, True]


# -- elastic averaging: stability ----------------------------------------------------------------


def paths(p: int, eta: float, alpha: float, overlap: bool, cycles: int) -> Vector:
    """Return all workers' weights after every cycle of turns, from (1, .., 1) on."""
    fields = {"lr": eta, "rate": alpha, "overlap": overlap}
    results = descend(Fleet(p), "easgd", np.ones(1), lambda x, *_: x, cycles, **fields)
    return np.concatenate([one.seen for one in results], 1)


def expected(p: int, eta: float, alpha: float, overlap: bool, cycles: int) -> Vector:
    """Return the same by the matrix of a cycle; overlapped, the first step has no pull."""
    move, _ = cycle(p, eta, alpha, 1, overlap)
    state, seen = np.ones(p + 1), []
    if overlap:
        state[:p] = 1 - eta
        seen, cycles = [state[:p]], cycles - 1
    for _ in range(cycles):
        state = move @ state
        seen.append(state[:p])
    return np.array(seen)


@pytest.mark.parametrize("eta", ETAS)
@pytest.mark.parametrize("p", [1, 16])
def test_overlapped_easgd_is_stable_up_to_the_bound_of_its_authors(p: int, eta: float) -> None:
    """The gradient and the pull of the centre are those of the same weights (1412.6651)."""
    bound = (4 - 2 * eta) / (4 - eta)
    assert round(bound, 3) == ETAS[eta]
    for factor, grows in ((0.99, False), (1.01, True)):
        given = (p, eta, factor * bound, True)
        assert (radius(cycle(p, eta, factor * bound, 1, overlap=True)[0]) > 1) == grows
        cycles = 80 if p > 1 else 1200
        path = paths(*given, cycles)
        np.testing.assert_allclose(path, expected(*given, cycles), rtol=1e-3, atol=1e-3)
        if p == 1:
            assert (growth(path, 2).max() > 1) == grows


@pytest.mark.parametrize("eta", ETAS)
@pytest.mark.parametrize("p", [1, 16])
def test_easgd_in_line_is_stable_at_every_moving_rate(p: int, eta: float) -> None:
    """The pull is that of the weights after the step: more stable than the authors' order."""
    for alpha in np.linspace(0.05, 1, 20):
        assert radius(cycle(p, eta, float(alpha), 1, overlap=False)[0]) < 1
    given = (p, eta, 1.0, False, 40)
    np.testing.assert_allclose(paths(*given), expected(*given), rtol=1e-3, atol=1e-3)


# -- elastic averaging: what noise does to the centre -----------------------------------------


def settled(eta: float) -> float:
    """Return the variance of plain SGD on x^2 / 2 with unit noise in the gradient."""
    return eta**2 / (1 - (1 - eta) ** 2)


def centre(p: int, eta: float, alpha: float, tau: int, overlap: bool = False) -> float:
    """Return the stationary variance of the centre, by that of plain SGD."""
    return float(stationary(*cycle(p, eta, alpha, tau, overlap))[-1, -1]) / settled(eta)


@pytest.mark.parametrize(
    ("eta", "tau", "p", "fixed", "shared"),
    [
        (0.1, 1, 4, 0.192, 0.196),
        (0.1, 1, 16, 0.082, 0.057),
        (0.1, 16, 16, 0.111, 0.033),
        (0.3, 4, 16, 0.111, 0.035),
    ],
)
def test_the_centre_of_a_fixed_rate_saturates(
    eta: float, tau: int, p: int, fixed: float, shared: float
) -> None:
    """In line, round robin; fixed: moving rate 0.2, shared: 0.9 / p."""
    assert round(centre(p, eta, 0.2, tau), 3) == fixed
    assert round(centre(p, eta, 0.9 / p, tau), 3) == shared


def test_the_limit_of_a_fixed_rate_is_the_same_for_any_number_of_workers() -> None:
    for alpha in (0.1, 0.2, 0.5):
        for p in (2, 8, 32):
            for overlap in (True, False):
                limit = centre(p, 0.1, alpha, 200, overlap)
                assert limit == pytest.approx(alpha / (2 - alpha), rel=1e-6)
    shared = [p * centre(p, 0.1, 0.9 / p, 200) for p in (2, 8, 32)]
    assert shared == sorted(shared, reverse=True)
    assert shared[-1] < 0.5


WIDTH, SAMPLES = 4096, 10
"""Independent coordinates of a vector, and how often it is looked at."""


def noise(x: Vector, rank: int, step: int) -> Vector:
    """Return the gradient of x^2 / 2 with unit noise."""
    random = np.random.default_rng((rank, step))
    return x + random.standard_normal(len(x), np.float32)


def measured(rule: str, p: int, eta: float, steps: int, apart: int, **fields: Any) -> float:
    """Return the variance of what others would read at SAMPLES moments, by that of plain SGD."""
    looks: list[float] = []

    def before(job: Job, step: int) -> None:
        if job.rank == 0 and step >= steps - SAMPLES * apart and step % apart == 0:
            _, chosen = job.groups["main"]
            chosen.master(shown.ctypes.data)
            looks.append(float(np.mean(shown[:WIDTH] ** 2)))
        compute(job)

    shown = np.zeros(WIDTH, np.float32)
    start = np.zeros(WIDTH)
    descend(Fleet(p), rule, start, noise, steps, lr=eta, before=before, **fields)
    assert len(looks) == SAMPLES
    return float(np.mean(looks)) / settled(eta)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("share", [0.2, 0.9 / 8])
def test_easgd_has_the_stationary_variance_of_its_equations(overlap: bool, share: float) -> None:
    p, tau, eta = 8, 4, 0.2
    fields = {"rate": share, "interval": tau, "overlap": overlap}
    found = measured("easgd", p, eta, 40 * tau + SAMPLES * 8, 8, **fields)
    move, _ = cycle(p, eta, share, tau, overlap)
    assert radius(move) ** 80 < 1e-2
    assert found == pytest.approx(centre(p, eta, share, tau, overlap), rel=0.04)


SYNC = {2: (0.0178, 0.0263), 4: (0.01046, 0.0132), 8: (0.00577, 0.0066), 16: (0.00304, 0.0033)}
"""Workers: variance of the centre of synchronous EASGD with 0.9 / p, and of synchronous SGD."""


def synchronous(p: int, eta: float, beta: float) -> float:
    """Return the variance of the centre when all exchange at once: mean and centre suffice."""
    alpha = beta / p
    move = np.array([[1 - eta - alpha, alpha], [beta, 1 - beta]])
    return float(stationary(move, np.diag([eta**2 / p, 0.0]))[1, 1])


@pytest.mark.parametrize("p", SYNC)
def test_the_centre_of_synchronous_easgd_is_calmer_than_synchronous_sgd(p: int) -> None:
    elastic, sgd = SYNC[p]
    assert synchronous(p, 0.1, 0.9) == pytest.approx(elastic, rel=0.004)
    assert settled(0.1) / p == pytest.approx(sgd, rel=0.01)
    assert settled(0.1) * centre(p, 0.1, 0.9 / p, 1, overlap=True) == pytest.approx(
        synchronous(p, 0.1, 0.9), rel=0.06
    )


@pytest.mark.parametrize("p", [4, 16])
def test_ssgd_has_the_variance_of_one_worker_on_all_samples(p: int) -> None:
    assert measured("ssgd", p, 0.2, 100, 8) == pytest.approx(1 / p, rel=0.04)


@pytest.mark.parametrize("workers", [2, 4])
def test_a_centre_follows_at_p_of_p_plus_one_of_the_pace_of_its_workers(
    workers: int,
) -> None:
    """Down one slope for everybody: p of p + 1 as fast as each worker alone."""
    steps, first = 100, 1.0

    def body(job: Job) -> float:
        model = nn.ParameterList([nn.Parameter(torch.full((4,), first))])
        net = attach(job, "easgd", model, partial(torch.optim.SGD, lr=1e-2))
        for _ in range(steps):
            net.step(model[0].sum())
            job.cluster.clock.sleep(0.01)  # a minibatch, so that all are as fast
        centre = float(master(net)[0])
        net.rule.finish()
        job.groups.clear()
        return centre

    with place("sim") as where:
        centre = min(together(workers, where, body))
    assert (first - centre) / (steps * 1e-2) == pytest.approx(workers / (workers + 1), abs=0.02)

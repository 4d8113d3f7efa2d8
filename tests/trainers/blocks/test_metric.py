"""Metric losses: values by hand, minima where they should be, derivatives of both orders."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from trainers.blocks.metric import LOSSES, log_ratio, n_pair, squared_distances, triplet

LABELS = torch.tensor([0, 0, 1, 1, 2, 2])


def points(*degrees: float) -> Tensor:
    angles = torch.tensor(degrees, dtype=torch.float64) * math.pi / 180
    return torch.stack([angles.cos(), angles.sin()], 1)


def scattered(count: int = 6, size: int = 5) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return functional.normalize(
        torch.randn(count, size, generator=draw, dtype=torch.float64), dim=1
    )


def test_distances_are_euclidean() -> None:
    a_ND, b_MD = scattered(), scattered(4)
    assert torch.allclose(
        squared_distances(a_ND, b_MD), torch.cdist(a_ND, b_MD).square(), atol=1e-5
    )


@pytest.mark.parametrize("name", LOSSES)
def test_classes_apart_cost_less_than_classes_mixed(name: str) -> None:
    apart, mixed = points(0, 4, 120, 124, 240, 244), points(0, 120, 4, 240, 124, 244)
    loss = LOSSES[name]
    assert float(loss(apart, LABELS)) < 0.5 * float(loss(mixed, LABELS))


@pytest.mark.parametrize("name", LOSSES)
def test_losses_may_be_differentiated_twice(name: str) -> None:
    weight = scattered(6, 3).requires_grad_()

    def loss(free: Tensor) -> Tensor:
        return LOSSES[name](functional.normalize(free, dim=1), LABELS)

    assert torch.autograd.gradcheck(loss, weight)
    assert torch.autograd.gradgradcheck(loss, weight)


@pytest.mark.parametrize("name", LOSSES)
def test_equal_pictures_and_lone_classes_give_finite_gradients(name: str) -> None:
    for labels in (LABELS, torch.zeros(6, dtype=torch.long), torch.arange(6)):
        free = torch.ones(6, 3).requires_grad_()
        loss = LOSSES[name](functional.normalize(free, dim=1), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        assert math.isfinite(float(loss)) and bool(free.grad.isfinite().all())


def test_contrastive_by_hand() -> None:
    z_ND = points(0, 60, 30)
    near = 1.0  # 60 degrees are a chord of 1
    chord = 2 * math.sin(math.radians(15))
    expected = near + (0.7 - chord) ** 2
    assert float(LOSSES["contrastive"](z_ND, torch.tensor([0, 0, 1]))) == pytest.approx(expected)


def test_triplets_are_mined_as_they_say() -> None:
    z_ND, labels = points(0, 20, 10, 60), torch.tensor([0, 0, 1, 2])
    chord = [2 * math.sin(math.radians(degrees / 2)) for degrees in (20, 10, 60, 40)]
    hard = chord[0] - chord[1] + 0.2
    assert float(triplet(z_ND, labels)) == pytest.approx(hard)
    # Semi-hard: the negative at 10 degrees is nearer than the positive, so those beyond count.
    semi = [max(chord[0] - beyond + 0.2, 0) for beyond in chord[2:]]
    assert float(triplet(z_ND, labels, semi=True)) == pytest.approx(sum(semi) / 2)


def test_n_pair_by_hand() -> None:
    z_ND = points(0, 60, 90)
    ap, an, pn = 8 * 0.5, 0.0, 8 * math.cos(math.radians(30))
    expected = (math.log1p(math.exp(an - ap)) + math.log1p(math.exp(pn - ap))) / 2
    assert float(n_pair(z_ND, torch.tensor([0, 0, 1]))) == pytest.approx(expected)


def test_multi_similarity_by_hand() -> None:
    z_ND, labels = points(0, 60, 90), torch.tensor([0, 0, 1])
    s01, s02, s12 = (math.cos(math.radians(degrees)) - 0.5 for degrees in (60, 90, 30))

    def near(*same: float) -> float:
        return math.log1p(sum(math.exp(-2 * s) for s in same)) / 2

    def far(*other: float) -> float:
        return math.log1p(sum(math.exp(50 * s) for s in other)) / 50

    each = [near(s01) + far(s02), near(s01) + far(s12), far(s02, s12)]
    found = float(LOSSES["multi_similarity"](z_ND, labels))
    assert found == pytest.approx(sum(each) / 3)


def test_lifted_by_hand() -> None:
    z_ND, labels = points(0, 60, 90), torch.tensor([0, 0, 1])
    d01, d02, d12 = (2 * math.sin(math.radians(degrees / 2)) for degrees in (60, 90, 30))
    one_pair = math.log(math.exp(1 - d02) + math.exp(1 - d12)) + d01
    assert float(LOSSES["lifted"](z_ND, labels)) == pytest.approx(one_pair**2 / 2)


def test_log_ratio_equals_the_sum_over_triples() -> None:
    z_ND = scattered(5)
    target = torch.cdist(scattered(5, 2), scattered(5, 2)) + 0.1
    d = squared_distances(z_ND, z_ND).sqrt()
    terms = [
        (torch.log(d[a, i] / d[a, j]) - torch.log(target[a, i] / target[a, j])) ** 2
        for a in range(5) for i in range(5) for j in range(5) if len({a, i, j}) == 3
    ]  # fmt: skip
    assert float(log_ratio(z_ND, target)) == pytest.approx(float(torch.stack(terms).mean()))
    assert float(log_ratio(z_ND, d)) == pytest.approx(0, abs=1e-9)

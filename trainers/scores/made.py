"""How good pictures are that a generator made: alike, varied, sure to be named, not copied.

Shape legend: N and M pictures, C channels, H height, W width, F features, K classes.
"""

from __future__ import annotations

import copy
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from dlplatform.seeds import derive
from trainers.blocks.classify import logits
from trainers.data.digits import DIGITS, load_digits
from trainers.data.sampling import draw
from trainers.nets.convnet import small_cnn
from trainers.scores.frechet import frechet

STEPS, BATCH = 500, 64
NEIGHBOUR = 3
"""The distance to this neighbour is how far a known picture's surroundings reach."""
SHARE = 0.01
"""Of the pictures that must surely be of a class for it to count as covered."""


class Expert:
    """A network that names digits: its features tell pictures apart, its answers judge them."""

    def __init__(self, net: nn.Sequential) -> None:
        self.net, self.eyes = net, net[:-1]

    def features(self, x_NCHW: Tensor) -> Tensor:
        """Return features_NF of pictures in [0, 1], on the CPU."""
        return logits(self.eyes, x_NCHW).cpu()

    def sure(self, x_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return how sure it is of its answer for each picture, and the answers."""
        best: tuple[Tensor, Tensor] = logits(self.net, x_NCHW).softmax(1).cpu().max(1)
        return best


@lru_cache(maxsize=2)
def digit_expert(size: int, seed: int = 0) -> Expert:
    """Return an expert trained for a few seconds on the bundled digits for training."""
    x_N1HW, labels = resized_digits("train", size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "expert"))
        net = small_cnn(size, 16, len(DIGITS))
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    with torch.enable_grad():  # scores are computed without
        for step in range(STEPS):
            picked = draw(seed, step, BATCH, len(labels))
            optimizer.zero_grad()
            loss = functional.cross_entropy(net(x_N1HW[picked]), labels[picked])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return Expert(net.eval())


@lru_cache(maxsize=2)
def blind_expert(size: int, channels: int, seed: int = 0) -> Expert:
    """Return an expert with random weights: its features see textures and colours of anything."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "blind"))
        layers = (nn.Conv2d(channels, 32, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(32, 64, 4, 2, 1))
        net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Identity())
    return Expert(net.eval())


@lru_cache(maxsize=4)
def resized_digits(split: str, size: int) -> tuple[Tensor, Tensor]:
    """Return the bundled digits of a split as (x_N1HW in [0, 1], labels)."""
    x_N1HW, labels = load_digits()[split].pair()
    return functional.interpolate(x_N1HW, (size, size), mode="bilinear", antialias=True), labels


def coverage(sure_N: Tensor, answer_N: Tensor, classes: int = len(DIGITS)) -> int:
    """Return how many classes are among the pictures that the expert is sure of."""
    counts_K = answer_N[sure_N > 0.5].bincount(minlength=classes)
    return int((counts_K >= max(1, SHARE * len(answer_N))).sum())


def nearest(x_NCHW: Tensor, known_NCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distance of each picture to the nearest known one (RMS of a pixel), and which."""
    apart = torch.cdist(x_NCHW.flatten(1).cpu(), known_NCHW.flatten(1))
    found = apart.min(1)
    return found.values / x_NCHW[0].numel() ** 0.5, found.indices


def novelty(made_NCHW: Tensor, real_NCHW: Tensor, known_NCHW: Tensor) -> float:
    """Return how far made pictures are from the nearest known one, real held-out ones being 1."""
    made, real = (nearest(x, known_NCHW)[0].median() for x in (made_NCHW, real_NCHW))
    return float(made / real)


def likeness(
    expert: Expert, real_NCHW: Tensor, made_NCHW: Tensor, first_NCHW: Tensor
) -> dict[str, float]:
    """Return how alike made and real pictures are in the features of an expert.

    ``precision`` is the share of made pictures among real ones, ``recall`` the share of real ones
    among made ones, ``f1`` their harmonic mean (Kynkaanniemi et al., Improved precision and recall
    metric for assessing generative models, 2019). ``distance`` is Frechet's, and
    ``first_distance`` that of the pictures of an untrained generator.
    """
    real_NF, made_NF = (expert.features(x) for x in (real_NCHW, made_NCHW))
    precision, recall = within(made_NF, real_NF), within(real_NF, made_NF)
    return {
        "f1": 2 * precision * recall / max(precision + recall, 1e-9),
        "precision": precision,
        "recall": recall,
        "distance": frechet(real_NF, made_NF),
        "first_distance": frechet(real_NF, expert.features(first_NCHW)),
    }


def within(asked_NF: Tensor, known_MF: Tensor) -> float:
    """Return the share of features that lie as close to a known one as its own neighbours do."""
    among = min(NEIGHBOUR, len(known_MF) - 1) + 1  # each is the nearest to itself
    radius_M = torch.cdist(known_MF, known_MF).kthvalue(among, dim=1).values
    inside_N = (torch.cdist(asked_NF, known_MF) <= radius_M).any(1)
    return float(inside_N.double().mean())


def told_apart(net: nn.Module, real_NCHW: Tensor, made_NCHW: Tensor) -> float:
    """Return a discriminator's accuracy on real and made pictures, each half of the whole."""
    judge = copy.deepcopy(net).train()  # it has learned to judge batches that are all real or made
    where = next(judge.parameters()).device
    with torch.no_grad():
        real_N, made_N = (judge(x.to(where)) > 0 for x in (real_NCHW, made_NCHW))
    return float((real_N.double().mean() + 1 - made_N.double().mean()) / 2)


def gaussian_like(known_NCHW: Tensor, count: int, seed: int) -> Tensor:
    """Return pictures from a Gaussian with the mean and covariance of the pixels of known ones."""
    draw = torch.Generator().manual_seed(seed)
    rows_NF = known_NCHW.flatten(1)
    weights_MN = torch.randn(count, len(rows_NF), generator=draw) / len(rows_NF) ** 0.5
    # A sum of centred rows with random weights has their covariance, however many pixels.
    made_MF = rows_NF.mean(0) + weights_MN @ (rows_NF - rows_NF.mean(0))
    made_MCHW: Tensor = made_MF.clamp(0, 1).view(count, *known_NCHW.shape[1:])
    return made_MCHW

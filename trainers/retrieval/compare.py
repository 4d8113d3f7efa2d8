"""What adaptation brings: one table of adapted networks and of everything they are compared to.

Shape legend: N pictures, C channels, H height, W width, D size of an embedding.
Source of the comparisons: the patent on few-shot retrieval, par. [0003]-[0006].
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from statistics import fmean
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from dlplatform.seeds import derive
from dlplatform.task import Models
from trainers.blocks.descriptors import dense_sift, hog
from trainers.blocks.maml import Inner, Labelled, Weights, adapted
from trainers.blocks.metric import squared_distances
from trainers.data.meta import Embed, embedded
from trainers.nets.embedding import CosineClassifier
from trainers.retrieval.agreement import train
from trainers.retrieval.domains import Draw
from trainers.scores.retrieval import (
    agreement,
    map_at_r,
    rank_others,
    recall_at,
    separability,
)

if TYPE_CHECKING:
    from trainers.retrieval.fewshot import FewShot

COSINE_ALPHA = 0.02


@dataclass(frozen=True)
class Found:
    """How well a draw is searched."""

    map_r: float
    recall1: float
    recall5: float
    ratio: float
    """Mean distance within a class over that between classes."""
    loss: float
    """Metric loss on what was searched."""


@dataclass(frozen=True)
class Step:
    """The metric loss on the support, which falls, and how the rest is searched."""

    support_loss: float
    rest: Found


def judge(net: Embed, rest: Labelled, inner: Inner) -> Found:
    """Return how well pictures are searched by each other in the space of a network."""
    z_ND = embedded(net, rest.pictures)
    right = rank_others(z_ND, rest.labels)
    return Found(
        map_at_r(right),
        recall_at(right, 1),
        recall_at(right, 5),
        separability(squared_distances(z_ND, z_ND), rest.labels),
        float(inner.loss(z_ND, rest.labels)),
    )


def course(
    net: nn.Module, draw: Draw, inner: Inner, sizes: Weights | None, at: Collection[int] = ()
) -> dict[int, Step]:
    """Return how a draw is searched after each number of steps in ``at``; all, if it is empty."""
    at, steps = at or range(inner.steps + 1), {}
    count = iter(range(max(at) + 1))

    def watch(one: nn.Module) -> None:
        if (number := next(count)) in at:
            z_ND = embedded(one, draw.support.pictures)
            loss = float(inner.loss(z_ND, draw.support.labels))
            steps[number] = Step(loss, judge(one, draw.rest, inner))

    adapted(net, draw.support, replace(inner, steps=max(at)), sizes, watch)
    return steps


def adaptation(
    net: nn.Module, draws: Sequence[Draw], inner: Inner, sizes: Weights | None, at: Collection[int]
) -> list[dict[str, float]]:
    """Return the values of ``Found`` by name, means of draws, after each number of steps."""
    courses = [course(net, draw, inner, sizes, at) for draw in draws]
    return [
        {field.name: fmean(getattr(one[n].rest, field.name) for one in courses)
         for field in fields(Found)}
        for n in at
    ]  # fmt: skip


def scores(task: FewShot, models: Models, draws: Sequence[Draw]) -> dict[str, float]:
    """Return how adapted and unadapted copies search, and how source and target agree.

    ``early`` is MAP@R after as few steps as an episode has.
    """
    net, inner, at = models["net"], task.deployed, (0, task.inner_steps, task.steps)
    before, early, after = adaptation(net, draws, inner, task.sizes(models), at)
    held_out = Labelled(*task.domains.source()["val"].pair())
    device = next(net.parameters()).device
    rho1 = judge(net, Labelled(*(part.to(device) for part in held_out)), inner).ratio
    return {
        **{name: after[name] for name in ("map_r", "recall1", "recall5")},
        "unadapted": before["map_r"],
        "gain": after["map_r"] - before["map_r"],
        "early": early["map_r"],
        "rho1": rho1,
        "rho2": after["ratio"],
        "similarity": agreement(rho1, after["ratio"]),
    }


def references(task: FewShot) -> dict[str, float]:
    """Return MAP@R on the test draws of all that MAML is compared to, in one table."""
    draws, inner = list(task.batches("test")), task.deployed
    first = [number for number in range(task.minibatches) if task.stage(number) == 1]
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(task.seed, "untrained"))
        plain, cosine = replace(task, meta_sgd=False).models()["net"], task.models()["net"]
        random_net = _mean_map(plain, draws)
        (random_adapted,) = adaptation(plain, draws, inner, None, (task.steps,))
        train(replace(task, meta_sgd=False), {"net": plain}, first)
        classifier = pretrained_classifier(cosine, task, first)
        at = (0, task.inner_steps, task.steps)
        before, early, after = adaptation(plain, draws, inner, None, at)
    return {
        "raw_pixels": _mean_map(lambda x_NCHW: x_NCHW.flatten(1), draws),
        "hog": _mean_map(hog, draws),
        "dense_sift": _mean_map(dense_sift, draws),
        "random_net": random_net,
        "random_net_adapted": random_adapted["map_r"],
        "cosine_classifier": cosine_classifier(classifier, draws, inner.steps),
        "unadapted_metric": before["map_r"],
        "fine_tuned_early": early["map_r"],
        "fine_tuned": after["map_r"],
    }


def pretrained_classifier(
    embedding: nn.Module, task: FewShot, numbers: Sequence[int]
) -> CosineClassifier:
    """Train a cosine classifier of all classes of the source, on minibatches of stage 1."""
    source = task.domains.source()["train"]
    size = embedding(source.pair()[0][:1]).shape[1]
    classifier = CosineClassifier(embedding, size, len(source.names))
    optimizer = torch.optim.Adam(classifier.parameters(), lr=task.lr)
    with torch.enable_grad():
        for number in numbers:
            x_BCHW, labels = source.take(task.picked(number)).pair()
            optimizer.zero_grad()
            loss = functional.cross_entropy(classifier(x_BCHW), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return classifier


def cosine_classifier(classifier: CosineClassifier, draws: Sequence[Draw], steps: int) -> float:
    """Return MAP@R of a pre-trained cosine classifier adapted to the few labels of each draw.

    The directions of the new classes start as the means of their embeddings, then they and the
    network descend the cross-entropy; pictures are compared by the adapted embedding.
    """
    inner, found = Inner(functional.cross_entropy, steps, COSINE_ALPHA), []
    for draw in draws:
        known, labels = draw.support.labels.unique(return_inverse=True)  # type: ignore[no-untyped-call]
        z_ND = embedded(classifier.embedding, draw.support.pictures)
        new = CosineClassifier(classifier.embedding, z_ND.shape[1], len(known), classifier.scale)
        means_KD = torch.stack([z_ND[labels == k].mean(0) for k in range(len(known))])
        new.directions = nn.Parameter(functional.normalize(means_KD, dim=1))
        support = Labelled(draw.support.pictures, labels)
        found.append(_mean_map(adapted(new, support, inner).embedding, [draw]))
    return fmean(found)


def _mean_map(way: Embed, draws: Sequence[Draw]) -> float:
    ranks = (rank_others(embedded(way, rest.pictures), rest.labels) for _, rest in draws)
    return fmean(map_at_r(right) for right in ranks)

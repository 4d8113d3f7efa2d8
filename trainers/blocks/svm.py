"""The linear support vector machine: one margin for each class, among all others.

It scores proposals both ways: by the best class, to rank them, or by each, to name them.

Source: Cortes and Vapnik, Support-Vector Networks (1995); hard negatives as Felzenszwalb et al.
(2010) and Girshick et al., R-CNN (2014), section 2.3.

Shape legend: N samples, F features, K classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dlplatform.task import Mean

REFUSED = -1
"""The label of a sample that is of none of the classes."""


class LinearSVM(nn.Module):
    """scores_NK = w x + b; a class is there where its score is above 0."""

    def __init__(self, features: int, classes: int) -> None:
        """Start at zero: the problem is convex."""
        super().__init__()
        self.linear = nn.Linear(features, classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x_NF: Tensor) -> Tensor:
        """Return scores_NK."""
        scores_NK: Tensor = self.linear(x_NF)
        return scores_NK

    def rank(self, x_NF: Tensor) -> Tensor:
        """Return the numbers of the samples, those first that any class takes for its own."""
        order_N: Tensor = self(x_NF).amax(1).argsort(descending=True)
        return order_N

    def penalty(self) -> Tensor:
        """Return half the squared length of the weights: the smaller, the wider the margins."""
        return self.linear.weight.square().sum() / 2


def margins(scores_NK: Tensor, labels_N: Tensor) -> Tensor:
    """Return y (w x + b) as margins_NK: y is 1 for a sample's own class and -1 for the others.

    A sample with the label ``REFUSED`` belongs to none.
    """
    own_NK = labels_N[:, None] == torch.arange(scores_NK.shape[1], device=scores_NK.device)
    return torch.where(own_NK, scores_NK, -scores_NK)


def hinge(scores_NK: Tensor, labels_N: Tensor) -> Mean:
    """Return the mean over samples of sum_k max(0, 1 - y (w x + b))."""
    return Mean((1 - margins(scores_NK, labels_N)).clamp(min=0).sum(), len(labels_N))


@torch.enable_grad()
def fit_svm(
    x_NF: Tensor, labels_N: Tensor, classes: int, cost: float = 1.0, start: LinearSVM | None = None
) -> LinearSVM:
    """Return the minimum of penalty + cost * sum of the squared hinges (L-BFGS).

    The square makes it smooth; it is the default of scikit-learn's LinearSVC, too. With a
    ``start`` its weights are where the search begins.
    """
    with torch.random.fork_rng(devices=[]):
        model = LinearSVM(x_NF.shape[1], classes)
    if start is not None:
        model.load_state_dict(start.state_dict())
    search = torch.optim.LBFGS(
        model.parameters(), max_iter=200, tolerance_change=1e-7, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        search.zero_grad()
        short_NK = (1 - margins(model(x_NF), labels_N)).clamp(min=0)
        loss: Tensor = model.penalty() + cost * short_NK.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    search.step(closure)  # type: ignore[no-untyped-call]
    model.requires_grad_(False)
    return model


def hardest(scores_NK: Tensor, count: int) -> Tensor:
    """Return the numbers of the samples of no class that most look as if they were of one."""
    return scores_NK.amax(1).topk(min(count, len(scores_NK))).indices


def fit_mining(
    samples: tuple[Tensor, Tensor],
    negatives: Callable[[int], Tensor],
    rounds: int,
    classes: int,
    cost: float = 1.0,
) -> LinearSVM:
    """Fit, look at more negatives, keep those within the margin, fit again: hard negative mining.

    Args:
        samples: (x_NF, labels_N) to begin with.
        negatives: returns more samples_NF of no class for each round from 0.
        rounds: how often to look.
        classes: how many there are.
        cost: of a sample within the margin.
    """
    x_NF, labels_N = samples
    model = fit_svm(x_NF, labels_N, classes, cost)
    for number in range(rounds):
        more_NF = negatives(number)
        hard_NF = more_NF[model(more_NF).amax(1) > -1]
        none_N = labels_N.new_full((len(hard_NF),), REFUSED)
        x_NF, labels_N = torch.cat([x_NF, hard_NF]), torch.cat([labels_N, none_N])
        model = fit_svm(x_NF, labels_N, classes, cost, start=model)
    return model

"""The linear classifier every network has to beat.

x is (samples, inputs), labels is (samples,).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


@torch.enable_grad()
def fit_linear(x: Tensor, labels: Tensor, classes: int, decay: float = 1e-4) -> nn.Linear:
    """Fit multinomial logistic regression to the minimum (L-BFGS), with a small L2 penalty."""
    # The problem is convex: it starts at zero, and no seed has a say in the answer.
    with torch.random.fork_rng(devices=[]):
        model = nn.Linear(x.shape[1], classes)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    search = torch.optim.LBFGS(
        model.parameters(), max_iter=200, tolerance_change=1e-5, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        search.zero_grad()
        loss = functional.cross_entropy(model(x), labels)
        penalised: Tensor = loss + decay * model.weight.square().sum()
        penalised.backward()  # type: ignore[no-untyped-call]
        return penalised

    search.step(closure)  # type: ignore[no-untyped-call]
    model.requires_grad_(False)
    return model

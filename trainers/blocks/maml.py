"""Model-agnostic meta-learning: learn the weights from which a few steps adapt best.

Shape legend: N samples, C channels, H height, W width, D size of an embedding.
Source: Finn et al. (2017); Li et al., Meta-SGD (2017). A step is Eq. 1 of the patent on
few-shot retrieval, the gradient of ``query_loss`` is that of its Eq. 2.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

Weights = dict[str, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]
Net = TypeVar("Net", bound=nn.Module)


class Labelled(NamedTuple):
    """Pictures (N, C, H, W) and their labels (N); in a minibatch several such sets, stacked."""

    pictures: Tensor
    labels: Tensor

    def sets(self) -> list[Labelled]:
        """Return the sets of a minibatch one by one."""
        return [Labelled(*one) for one in zip(self.pictures, self.labels, strict=True)]


@dataclass(frozen=True)
class Inner:
    """The inner loop: gradient descent on the support set, from the weights of a network."""

    loss: Loss
    steps: int = 5
    alpha: float = 0.2
    second_order: bool = True
    part: str = ""
    """Name of the module whose weights it adapts; empty: all."""


class StepSizes(nn.Module):
    """A learnt step size for every single weight of a network (Meta-SGD)."""

    def __init__(self, net: nn.Module, alpha: float) -> None:
        """Start with ``alpha`` everywhere."""
        super().__init__()
        self.sizes = nn.ParameterList(torch.full_like(p, alpha) for p in net.parameters())

    def named(self, net: nn.Module) -> Weights:
        """Return the step sizes by the name of the weight."""
        names = (name for name, _ in net.named_parameters())
        return dict(zip(names, self.sizes, strict=True))


def descend(
    net: nn.Module, weights: Weights, support: Labelled, inner: Inner, sizes: Weights | None = None
) -> Weights:
    """Return the weights after ``inner.steps`` steps of Eq. 1 on the support set.

    They depend on ``weights`` through autograd: wholly, or with ``second_order`` off as if the
    gradients of the inner loop were constants.
    """
    moving = [name for name in weights if not inner.part or inner.part in name.split(".")]
    for _ in range(inner.steps):
        z_ND = functional_call(net, weights, (support.pictures,))
        grads = torch.autograd.grad(
            inner.loss(z_ND, support.labels),
            [weights[name] for name in moving],
            create_graph=inner.second_order,
        )
        stepped = {
            name: weights[name] - (sizes[name] if sizes else inner.alpha) * grad
            for name, grad in zip(moving, grads, strict=True)
        }
        weights = {**weights, **stepped}
    return weights


def query_loss(
    net: nn.Module, support: Labelled, query: Labelled, inner: Inner, sizes: Weights | None = None
) -> Tensor:
    """Return the loss on the query set after adapting to the support set; its gradient is Eq. 2."""
    weights = descend(net, dict(net.named_parameters()), support, inner, sizes)
    return inner.loss(functional_call(net, weights, (query.pictures,)), query.labels)


@torch.inference_mode(False)
@torch.enable_grad()
def adapted(
    net: Net, support: Labelled, inner: Inner, sizes: Weights | None = None,
    watch: Callable[[nn.Module], None] | None = None,
) -> Net:  # fmt: skip
    """Return a copy of a network adapted to a support set; the network stays as it is.

    ``watch`` is called with the copy before the first step and after each.
    """
    one = Inner(inner.loss, 1, inner.alpha, second_order=False, part=inner.part)
    result = copy.deepcopy(net).requires_grad_(True)
    # What was made in inference mode, as saved runs are used, takes no part in autograd.
    support = Labelled(*(part.clone() for part in support))
    for step in range(inner.steps + 1):
        if watch is not None:
            with torch.no_grad():
                watch(result)
        if step < inner.steps:
            weights = descend(result, dict(result.named_parameters()), support, one, sizes)
            with torch.no_grad():
                for name, weight in result.named_parameters():
                    weight.copy_(weights[name])
    return result.requires_grad_(False).eval()

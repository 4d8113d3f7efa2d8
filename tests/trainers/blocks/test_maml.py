"""MAML: the steps of Eq. 1 by hand, the gradient of Eq. 2 against finite differences."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from trainers.blocks.maml import Inner, Labelled, StepSizes, adapted, descend, query_loss
from trainers.blocks.metric import contrastive
from trainers.nets.embedding import CosineClassifier, Embedding

INNER = Inner(contrastive, steps=3, alpha=0.3)


def toy() -> tuple[Embedding, Labelled, Labelled]:
    torch.manual_seed(0)
    net = Embedding(1, (8,), head=True).double()
    parts = [
        Labelled(torch.rand(6, 1, 5, 5, dtype=torch.float64), torch.arange(6) % 3) for _ in range(2)
    ]
    return net, parts[0], parts[1]


def test_embeddings_have_length_one_and_average_over_all_places() -> None:
    net = Embedding(1, (8, 16, 16))
    x_BCHW = torch.rand(3, 1, 16, 16)
    assert torch.allclose(net(x_BCHW).norm(dim=1), torch.ones(3))
    assert net(x_BCHW).shape == net(torch.rand(3, 1, 24, 20)).shape == (3, 16)
    pooled = net.features(x_BCHW).mean((2, 3))
    assert torch.allclose(net(x_BCHW), pooled / pooled.norm(dim=1, keepdim=True))
    head = Embedding(1, (8, 16, 16), head=True)
    head.features.load_state_dict(net.features.state_dict())
    assert torch.allclose(head(x_BCHW), net(x_BCHW)), "a new head changes nothing"


def test_logits_of_a_cosine_classifier_are_cosines() -> None:
    classifier = CosineClassifier(Embedding(1, (8,)), 8, 5, scale=10.0)
    logits_BK = classifier(torch.rand(4, 1, 8, 8))
    assert logits_BK.shape == (4, 5) and float(logits_BK.detach().abs().max()) <= 10 + 1e-4


def test_a_step_is_the_weights_less_alpha_times_the_gradient() -> None:
    net, support, _ = toy()
    start = {name: weight.detach().clone() for name, weight in net.named_parameters()}
    loss = contrastive(net(support.pictures), support.labels)
    grads = torch.autograd.grad(loss, list(net.parameters()))
    one = adapted(net, support, replace(INNER, steps=1))
    for (name, weight), grad in zip(one.named_parameters(), grads, strict=True):
        assert torch.allclose(weight, start[name] - 0.3 * grad)
    assert all(torch.equal(weight, start[name]) for name, weight in net.named_parameters())


def test_adapting_a_copy_and_descending_agree_and_the_loss_falls() -> None:
    net, support, _ = toy()
    seen: list[float] = []

    def watch(one: nn.Module) -> None:
        seen.append(float(contrastive(one(support.pictures), support.labels)))

    copy = adapted(net, support, INNER, watch=watch)
    weights = descend(net, dict(net.named_parameters()), support, INNER)
    assert all(torch.allclose(weights[name], w) for name, w in copy.named_parameters())
    assert len(seen) == 4 and seen[-1] < seen[0]
    with torch.inference_mode():
        pictures = support.pictures + 0
        again = adapted(net, Labelled(pictures, support.labels), INNER)
    assert torch.equal(again(support.pictures), copy(support.pictures))


def numerical(net: nn.Module, value: Tensor, loss: object, places: list[int]) -> Tensor:
    found = []
    for place in places:
        ends = []
        for side in (1e-5, -1e-5):
            with torch.no_grad():
                value.view(-1)[place] += side
            ends.append(float(loss()))  # type: ignore[operator]
            with torch.no_grad():
                value.view(-1)[place] -= side
        found.append((ends[0] - ends[1]) / 2e-5)
    return torch.tensor(found, dtype=torch.float64)


def test_the_meta_gradient_agrees_with_finite_differences() -> None:
    net, support, query = toy()
    query_loss(net, support, query, INNER).backward()  # type: ignore[no-untyped-call]
    for value in (net.features[0].weight, net.head.weight):
        places = list(range(0, value.numel(), value.numel() // 7))
        numbers = numerical(net, value, lambda: query_loss(net, support, query, INNER), places)
        assert torch.allclose(value.grad.view(-1)[places], numbers, rtol=1e-4, atol=1e-7)


def test_first_order_takes_the_gradient_where_the_steps_ended() -> None:
    net, support, query = toy()
    first = replace(INNER, second_order=False)
    query_loss(net, support, query, first).backward()  # type: ignore[no-untyped-call]
    end = adapted(net, support, INNER).requires_grad_(True)
    contrastive(end(query.pictures), query.labels).backward()  # type: ignore[no-untyped-call]
    pairs = list(zip(net.parameters(), end.parameters(), strict=True))
    assert all(torch.allclose(a.grad, b.grad) for a, b in pairs)
    net.zero_grad()
    query_loss(net, support, query, INNER).backward()  # type: ignore[no-untyped-call]
    assert not all(torch.allclose(a.grad, b.grad) for a, b in pairs)


def test_step_sizes_are_learnt_with_the_right_gradient() -> None:
    net, support, query = toy()
    sizes = StepSizes(net, INNER.alpha).double()
    plain = query_loss(net, support, query, INNER)
    learnt = query_loss(net, support, query, INNER, sizes.named(net))
    assert float(learnt) == pytest.approx(float(plain))
    learnt.backward()  # type: ignore[no-untyped-call]
    value = sizes.sizes[0]
    numbers = numerical(
        net, value, lambda: query_loss(net, support, query, INNER, sizes.named(net)), [0, 9, 30]
    )
    assert torch.allclose(value.grad.view(-1)[[0, 9, 30]], numbers, rtol=1e-4, atol=1e-7)


def test_the_head_alone_adapts_if_so_asked() -> None:
    net, support, _ = toy()
    copy = adapted(net, support, replace(INNER, part="head"))
    assert torch.equal(copy.features[0].weight, net.features[0].weight)
    assert not torch.equal(copy.head.weight, net.head.weight)

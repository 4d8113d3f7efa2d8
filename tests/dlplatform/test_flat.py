"""FlatGroup: parameters are views of one vector, gradients of another, whatever a loop does."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tinytask import network
from torch import nn

from dlplatform.errors import UsageError
from dlplatform.flat import ALIGN, FlatGroup
from dlplatform.memorybox.memory import Memory


def group_of(model: nn.Module) -> FlatGroup:
    return FlatGroup("main", model.parameters())


def test_parameters_keep_their_values_and_become_views() -> None:
    model, same = network(), network()
    group = group_of(model)
    for p, q in zip(model.parameters(), same.parameters(), strict=True):
        assert torch.equal(p, q)
    group.weight.fill_(7.0)
    assert all((p == 7).all() for p in model.parameters())
    next(model.parameters()).data.fill_(1.0)
    assert (group.weight[:32] == 1).all()


def test_weights_with_channels_last_stay_so() -> None:
    plain, model = (nn.Sequential(nn.Conv2d(3, 5, 3), nn.Conv2d(5, 2, 2)) for _ in range(2))
    model.load_state_dict(plain.state_dict())
    group = group_of(model.to(memory_format=torch.channels_last))
    x_BCHW = torch.randn(2, 3, 9, 9)
    y_BCHW = model(x_BCHW)
    assert y_BCHW.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(y_BCHW, plain(x_BCHW), atol=1e-6)
    for net in (plain, model):
        net(x_BCHW).square().sum().backward()
    for p, q, view in zip(model.parameters(), plain.parameters(), group._grad_views, strict=True):
        assert p.grad is view
        assert p.stride() == view.stride()
        assert q.grad is not None and torch.allclose(view, q.grad, rtol=1e-4, atol=1e-4)
    last, plain_view = (group.views(group.weight, plain=way)[0] for way in (False, True))
    assert torch.equal(last, model[0].weight) and not torch.equal(plain_view, last)
    assert plain_view.is_contiguous() and plain_view.data_ptr() == last.data_ptr()


def test_every_parameter_starts_on_a_cache_line_and_gaps_stay_zero() -> None:
    group = group_of(nn.ParameterList([torch.ones(n) for n in (1, 17, 16)]))
    assert group.offsets == [0, 16, 48]
    assert group.length == 64
    assert group.weight_address % (4 * ALIGN) == group.grad_address % (4 * ALIGN) == 0
    assert group.weight.sum() == 34


def test_backward_writes_into_the_vector() -> None:
    model = network()
    group = group_of(model)
    model(torch.ones(1, 2)).sum().backward()
    flat = torch.cat([p.grad.flatten() for p in model.parameters()])  # type: ignore[union-attr]
    assert flat.abs().sum() > 0
    assert group.grad.sum().item() == pytest.approx(flat.sum().item(), rel=1e-5)
    group.zero_grad()
    assert group.grad.count_nonzero() == 0
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("replace", [torch.clone, torch.Tensor.contiguous, torch.Tensor.double])
def test_replaced_gradients_are_collected(replace: Callable[..., Any]) -> None:
    model = nn.Linear(3, 2)
    group = group_of(model)
    model.weight.grad = None
    with torch.no_grad():
        model.weight.grad = replace(torch.full((2, 3), 2.5)).float()
    group.collect_grad()
    assert group.grad[:6].tolist() == [2.5] * 6
    model.weight.grad.fill_(1.0)
    assert group.grad[:6].tolist() == [1.0] * 6


def test_a_transposed_gradient_is_copied_by_place_not_by_memory() -> None:
    model = nn.Linear(3, 2)
    group = group_of(model)
    model.weight.grad = torch.arange(6.0).view(3, 2).t()
    group.collect_grad()
    assert group.grad[:6].tolist() == [0, 2, 4, 1, 3, 5]


def test_none_is_zero_even_after_an_earlier_gradient() -> None:
    model = nn.Linear(3, 2)
    group = group_of(model)
    group.grad.fill_(9.0)
    for p in model.parameters():
        p.grad = None
    group.collect_grad()
    assert group.grad[:6].tolist() == [0] * 6


def test_tied_and_frozen_parameters_take_no_room() -> None:
    one, other, frozen = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
    other.weight = one.weight
    frozen.requires_grad_(False)
    group = group_of(nn.Sequential(one, other, frozen))
    assert len(group.parameters) == 3
    assert group.length == 16 + 16 + 16


def test_placed_gradients_move_and_are_zero() -> None:
    model = network()
    group = group_of(model)
    group.grad.fill_(3.0)
    memory = Memory(group.length)
    group.place_grad(memory.address, memory)
    assert group.grad_address == memory.address
    assert all((p.grad == 0).all() for p in model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    assert group.grad.abs().sum() > 0


def test_a_model_outlives_its_group() -> None:
    """The memory under the parameters goes with the last of them, not with the group."""
    kept = []
    for seed in range(20):
        model = network(seed, width=512)
        group_of(model)
        kept.append(model)
    gc.collect()
    for seed, model in enumerate(kept):
        assert all(map(torch.equal, model.parameters(), network(seed, width=512).parameters()))
        model(torch.ones(1, 2)).sum().backward()


def test_norm_and_copy() -> None:
    group = group_of(nn.ParameterList([torch.tensor([3.0, 4.0])]))
    assert group.norm(group.weight_address) == 5.0
    memory = Memory(group.length)
    group.copy_weight(memory.address)
    assert group.norm(memory.address) == 5.0


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.ParameterList([]), "group main has 0 trainable parameters"),
        (nn.Linear(2, 2).requires_grad_(False), "group main has 0 trainable parameters"),
        (nn.Linear(2, 2).double(), "torch.float64 on cpu"),
        (nn.Linear(2, 2, device="meta"), "torch.float32 on meta"),
    ],
    ids=["empty", "frozen", "double", "elsewhere"],
)
def test_groups_that_cannot_work(model: nn.Module, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        group_of(model)
    assert "\n" not in str(caught.value)

"""What every torch operator of ours must do: torch's own checks, and shapes without data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode


def check(operator: Any, arguments: tuple[Any, ...], *, symbolic: bool = True) -> None:
    """Run torch's checks of schema, derivative and fake results."""
    names = ["test_schema", "test_autograd_registration", "test_faketensor"]
    if symbolic:
        names.append("test_aot_dispatch_dynamic")
    found = torch.library.opcheck(operator, arguments, test_utils=names)
    assert set(found.values()) == {"SUCCESS"}


def shapes_agree(function: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> None:
    """Require the shape and dtype that a function has without data to be those with data."""
    real = function(*tensors)
    with FakeTensorMode() as mode:
        fake = function(*(mode.from_tensor(one) for one in tensors))
    assert (fake.shape, fake.dtype) == (real.shape, real.dtype)

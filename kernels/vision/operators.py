"""How an operator comes to torch: schema, kernel, shapes without data, derivative."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

SPACE = "dlplatform"


def register(
    schema: str,
    run: Callable[..., Any],
    fake: Callable[..., Any],
    keep: Callable[..., None] | None = None,
    derive: Callable[..., Any] | None = None,
) -> Any:
    """Register an operator ``dlplatform::NAME`` for every device and return it, to be called.

    Args:
        schema: ``NAME(arguments) -> results`` as torch writes it.
        run: the kernel; it chooses by device and dtype, and computes in that of its arguments.
        fake: results of the right shape without data, for FakeTensorMode and torch.compile.
        keep: saves for backward, as ``setup_context`` of an autograd function.
        derive: backward of an autograd function; None for operators without a derivative.
    """
    name, _, rest = schema.partition("(")
    full = f"{SPACE}::{name}"
    torch.library.define(full, f"({rest}")
    torch.library.impl(full, "default", _exact(run))
    torch.library.register_fake(full, fake)
    if derive:
        torch.library.register_autograd(full, derive, setup_context=keep)
    return getattr(getattr(torch.ops, SPACE), name).default


def _exact(run: Callable[..., Any]) -> Callable[..., Any]:
    """Keep autocast out of a kernel: it would bring some of its products to lower precision."""

    def kernel(first: Tensor, *rest: Any) -> Any:
        with torch.autocast(first.device.type, enabled=False):
            return run(first, *rest)

    return kernel


def require(truth: object, wrong: str) -> None:
    """Raise ValueError with a line of what failed - what is allowed - what to do."""
    if not truth:
        raise ValueError(wrong)


def pair(value: int | tuple[int, int], name: str, least: int) -> tuple[int, int]:
    """Return (y, x) of one number or two; raise ValueError below the least."""
    both = (value, value) if isinstance(value, int) else tuple(value)
    right = len(both) == 2 and all(one >= least for one in both)
    require(
        right,
        f"{name} {value} - allowed: an integer from {least} on, or two (y, x) - do: change {name}",
    )
    return both[0], both[1]

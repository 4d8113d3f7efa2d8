"""Start without torch.compile: optimizers load it, which takes half of a worker's start.

``Optimizer.add_param_group`` and its like import torch._dynamo when they are called first, to be
told to leave them alone, and ``step`` does to break its graph. Where nothing is compiled there is
no graph.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

ASKING = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")


def leave_compiler_out() -> None:
    """Have torch's optimizers do the same without loading torch.compile, if it is not there yet."""
    if "torch._dynamo" in sys.modules:
        return
    for name in ASKING:
        method = getattr(getattr(Optimizer, name), "__wrapped__", None)
        if method is not None:
            setattr(method, "__dynamo_disable", method)
    for cls in vars(torch.optim).values():
        step = vars(cls).get("step") if isinstance(cls, type) else None
        if getattr(getattr(step, "__code__", None), "co_name", "") == "_use_grad":
            cls.step = _plain(step.__wrapped__)  # type: ignore[union-attr]


def _plain(step: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(step)
    def plain(self: Optimizer, *args: Any, **kwargs: Any) -> Any:
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return step(self, *args, **kwargs)

    return plain

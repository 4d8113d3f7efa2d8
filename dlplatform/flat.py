"""FlatGroup: the weights of a parameter group as views of one vector, its gradients of another.

An exchange is then one call on one address: no flatten, no copy, no loop over tensors. The vectors
of a group on a GPU are there (``dlplatform/device.py``), and rules work on a copy in host memory.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from functools import cached_property, partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dlplatform.errors import UsageError
from dlplatform.memorybox.memory import Memory
from dlplatform.rules.vectors import OnHost

if TYPE_CHECKING:
    from dlplatform.rules.descent import Descent

ALIGN = 16  # floats: every parameter starts on a cache line


def vector(address: int, length: int, owner: object = None) -> Tensor:
    """Return memory of this process as an fp32 tensor of ``length`` elements, uncopied.

    The tensor and all views of it keep ``owner`` alive, which frees the memory.
    """
    raw = (ctypes.c_char * (4 * length)).from_address(address)
    raw.owner = owner  # type: ignore[attr-defined]
    return torch.frombuffer(raw, dtype=torch.float32)


class FlatGroup(OnHost):
    """One weight vector and one gradient vector under the parameters of a group.

    Frozen parameters (``requires_grad=False``) and repeated (tied) ones take no room.

    Args:
        name: names the group's buffers in the boxes.
        parameters: fp32 parameters on the CPU; ``FlatGroup.of`` takes those of a GPU, too.
    """

    describe: Callable[[], Descent]
    """Describes the group's optimizer; ``Job.attach`` sets it."""

    def __init__(self, name: str, parameters: Iterable[nn.Parameter]) -> None:
        self.name = name
        self.parameters = list(dict.fromkeys(p for p in parameters if p.requires_grad))
        self.flat = True
        """Whether gradients stay views of the vector; else each is whatever backward made."""
        self.final = True
        """Whether the next backward pass is the last one before a step."""
        self._watchers: list[tuple[Callable[[int], None], Callable[[], None]]] = []
        self._check()
        self.offsets, self.length = [], 0
        self._strides = list[tuple[int, ...]]()  # as they lie in memory, without gaps
        for p in self.parameters:
            self.offsets.append(self.length)
            self._strides.append(torch.empty_like(p, device="meta").stride())
            self.length += -(-p.numel() // ALIGN) * ALIGN
        self.weight, self.grad = self._zeros(), self._zeros()
        with torch.no_grad():
            for p, view in zip(self.parameters, self.views(self.weight), strict=True):
                view.copy_(p)
                p.data = view
        self._hold_grad()

    @staticmethod
    def of(name: str, parameters: Iterable[nn.Parameter]) -> FlatGroup:
        """Return a group for parameters where they are: on the CPU, or on one GPU."""
        parameters = list(parameters)
        if all(p.device.type == "cpu" for p in parameters):
            return FlatGroup(name, parameters)
        from dlplatform.device import DeviceGroup

        return DeviceGroup(name, parameters)

    @property
    def device(self) -> torch.device:
        """Return where the parameters are."""
        return self.parameters[0].device

    def _check(self) -> None:
        if not self.parameters:
            raise UsageError(
                f"group {self.name} has 0 trainable parameters - allowed: 1 or more - do: check "
                "requires_grad, or leave the group out"
            )
        for p in self.parameters:
            if p.dtype != torch.float32 or p.device != self.device or p.is_meta:
                place = "a device" if p.is_meta else f"{self.device}, where the first one is"
                raise UsageError(
                    f"group {self.name} has a parameter in {p.dtype} on {p.device} - allowed: "
                    f"torch.float32 on {place} - do: use run.precision for lower precision, "
                    "one device for one group"
                )

    def views(self, flat: Tensor, plain: bool = False) -> list[Tensor]:
        """Return a flat vector as tensors that are shaped and lie in memory as the parameters do.

        Weights with channels last stay so; ``plain`` takes the vector for one in which all values
        are in the order of their indices, as in a file.
        """
        parts = [
            flat[at : at + p.numel()] for p, at in zip(self.parameters, self.offsets, strict=True)
        ]
        if plain:
            return [part.view(p.shape) for part, p in zip(parts, self.parameters, strict=True)]
        places = zip(parts, self.parameters, self._strides, strict=True)
        return [part.as_strided(p.shape, strides) for part, p, strides in places]

    def _zeros(self) -> Tensor:
        memory = Memory(self.length)
        return vector(memory.address, self.length, memory)

    def place_grad(self, address: int, owner: object) -> None:
        """Keep the gradients in other memory from now on (a region that others can map)."""
        self.grad = vector(address, self.length, owner)
        self._hold_grad()

    def _hold_grad(self) -> None:
        self._grad_views = self.views(self.grad)
        self.zero_grad()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Zero all gradients at once and keep them views (None counts as zero here)."""
        if self.flat:
            self.grad.zero_()
            for p, view in zip(self.parameters, self._grad_views, strict=True):
                p.grad = view
        else:
            self.drop_grad()
        for _, cleared in self._watchers:
            cleared()

    def watch(self, done: Callable[[int], None], cleared: Callable[[], None]) -> None:
        """Tell when a parameter's gradient is complete (its index), and when all were zeroed.

        Only the backward pass before a step counts: where gradients of several passes add up,
        ``final`` is false until the last one.
        """
        self._watchers.append((done, cleared))
        if len(self._watchers) == 1:
            for index, p in enumerate(self.parameters):
                hook = partial(self._completed, index)
                p.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    def _completed(self, index: int, p: Tensor) -> None:
        if not self.final:
            return
        view = self._grad_views[index]
        if p.grad is not view and p.grad is not None:
            view.copy_(p.grad)
            p.grad = view
        for done, _ in self._watchers:
            done(index)

    def collect_grad(self) -> None:
        """Copy in gradients that a foreign loop replaced: after it, each is a view again."""
        for p, view in zip(self.parameters, self._grad_views, strict=True):
            if p.grad is view:
                continue
            if p.grad is None:
                view.zero_()
            elif p.grad.data_ptr() != view.data_ptr():
                view.copy_(p.grad)
            p.grad = view

    def drop_grad(self) -> None:
        """Have no gradients: an optimizer skips every parameter, without any state."""
        for p in self.parameters:
            p.grad = None

    @cached_property
    def descent(self) -> Descent:
        """Return the group's optimizer as an operation of the boxes, made when a rule asks."""
        return self.describe()

    def norm(self, address: int) -> float:
        """Return the Euclidean norm of a vector of the group's length."""
        return float(vector(address, self.length).norm())

    @property
    def weight_address(self) -> int:
        """Return where the weights are."""
        return self.weight.data_ptr()

    @property
    def grad_address(self) -> int:
        """Return where the gradients are."""
        return self.grad.data_ptr()

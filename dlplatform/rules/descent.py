"""Descent: what an optimizer of torch does, as an operation of the memory boxes (P-PS 119-136).

A rule never sees an optimizer. Where the boxes are to step instead of the workers, it asks its
group for ``group.descent`` and runs ``descent.step`` on the shared weights. Rates and all other
scalars are read from the optimizer at every step, so schedules work as they do in torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dlplatform.errors import UsageError
from dlplatform.memorybox.payload import Payload

if TYPE_CHECKING:
    import torch

    from dlplatform.flat import FlatGroup
    from dlplatform.memorybox.buffer import SharedBuffer

KEPT = {"axpy": (), "sgd": ("momentum_buffer",), "adam": ("exp_avg", "exp_avg_sq")}
"""What torch calls the states that an operation keeps in the boxes."""
REFUSED = ("amsgrad", "maximize", "dampening", "differentiable", "capturable")


@dataclass(frozen=True)
class Part:
    """A span of the group's vector that shares the settings of one group of the optimizer."""

    start: int
    count: int
    settings: Mapping[str, Any]


@dataclass
class Descent:
    """One optimizer as an operation: ``axpy`` (plain SGD), ``sgd`` or ``adam``."""

    op: str
    parts: list[Part]
    optimizer: torch.optim.Optimizer
    group: FlatGroup

    @staticmethod
    def of(optimizer: torch.optim.Optimizer, group: FlatGroup) -> Descent:
        """Describe torch's SGD, Adam or AdamW.

        Raises:
            UsageError: for any other optimizer, and for what the boxes cannot do.
        """
        from torch.optim import SGD, Adam, AdamW

        if type(optimizer) not in (SGD, Adam, AdamW):
            raise _refusal(type(optimizer).__name__)
        for settings in optimizer.param_groups:
            for name in REFUSED:
                if settings.get(name):
                    raise _refusal(f"{type(optimizer).__name__} with {name}={settings[name]}")
        op = "adam" if isinstance(optimizer, Adam) else "sgd"
        if op == "sgd" and not any(map(_more, optimizer.param_groups)):
            op = "axpy"
        return Descent(op, _parts(optimizer, group), optimizer, group)

    @property
    def kept(self) -> tuple[str, ...]:
        """Return what torch calls the vectors of state that stay in the boxes, in their order."""
        return KEPT[self.op]

    @property
    def rate(self) -> float:
        """Return the learning rate of now, for rules that do the arithmetic of plain SGD.

        Raises:
            UsageError: when there is more to it: moments, decay, or several rates.
        """
        rates = {float(settings["lr"]) for settings in self.optimizer.param_groups}
        more = [settings for settings in self.optimizer.param_groups if _more(settings)]
        if self.op != "axpy" or more or len(rates) > 1:
            what = type(self.optimizer).__name__
            extra = " with momentum or weight decay" if what == "SGD" and self.op != "axpy" else ""
            extra = f" with rates {sorted(rates)}" if len(rates) > 1 else extra
            raise UsageError(
                f"{what}{extra} of group {self.group.name} under this rule - allowed: "
                "torch.optim.SGD with one rate, no momentum and no decay - do: choose it in the "
                "task, or another rule"
            )
        return rates.pop()

    def step(
        self, weight: SharedBuffer, x: int | Payload | SharedBuffer,
        states: Sequence[SharedBuffer] = (), start: int = 0, count: int | None = None,
        number: int = 0,
    ) -> None:  # fmt: skip
        """Step with the gradient x on a span of the shared weights.

        Args:
            weight: the shared weights.
            x: the gradient, an address standing for the span's first element.
            states: a buffer for each of ``self.kept``, cut like the weights, zero at first.
            start: first element.
            count: elements; the rest by default.
            number: of the step, from 1 on, where several share it out; 0: the buffer counts its
                steps, which needs the whole buffer in one go.
        """
        end = weight.length if count is None else start + count
        if self.op == "adam" and not number and len(self.parts) > 1:
            raise _refusal(f"{type(self.optimizer).__name__} with several groups of parameters")
        for part in self.parts:
            first, last = max(start, part.start), min(end, part.start + part.count)
            if first >= last:
                continue
            moved = x + 4 * (first - start) if isinstance(x, int) else x
            k = self._scalars(part.settings, number)
            weight.apply(self.op, moved, k=k, states=states, start=first, count=last - first)

    def bring(self, states: Sequence[SharedBuffer], number: int) -> None:
        """Copy the state in the boxes, after step ``number``, to where torch keeps it."""
        import torch

        vectors = [torch.empty(self.group.length) for _ in states]
        for vector, state in zip(vectors, states, strict=True):
            state.read(vector.data_ptr())
        vectors = [vector.to(self.group.device) for vector in vectors]
        for parts in zip(self.group.parameters, *map(self.group.views, vectors), strict=True):
            found = dict(zip(self.kept, parts[1:], strict=True))
            step = {"step": torch.tensor(float(number))} if self.op == "adam" else {}
            self.optimizer.state[parts[0]] = step | found

    def hand_over(self, states: Sequence[SharedBuffer], first: bool) -> int:
        """Empty torch's state, which ``first`` writes to the boxes; return the last step."""
        import torch

        held = [self.optimizer.state.pop(p, {}) for p in self.group.parameters]
        for name, state in zip(self.kept, states, strict=True):
            vector = torch.zeros(self.group.length)
            for view, mine in zip(self.group.views(vector), held, strict=True):
                if mine.get(name) is not None:
                    view.copy_(mine[name])
            if first:
                state.write(vector.data_ptr())
        return max((int(mine.get("step", 0)) for mine in held), default=0)

    def _scalars(self, settings: Mapping[str, Any], number: int) -> tuple[float, ...]:
        rate, decay = float(settings["lr"]), float(settings["weight_decay"])
        if self.op == "adam":
            beta1, beta2 = (float(beta) for beta in settings["betas"])
            decoupled = float(settings["decoupled_weight_decay"])
            return (rate, beta1, beta2, float(settings["eps"]), decay, decoupled, float(number))
        if self.op == "sgd":
            return (rate, float(settings["momentum"]), decay, float(settings["nesterov"]))
        if _more(settings):
            raise _refusal("SGD that got momentum or weight decay on the way")
        return (-rate,)


def _more(settings: Mapping[str, Any]) -> bool:
    """Tell whether SGD does more than subtract the gradient."""
    return bool(settings.get("momentum") or settings["weight_decay"])


def _parts(optimizer: torch.optim.Optimizer, group: FlatGroup) -> list[Part]:
    """Return the optimizer's groups as spans; neighbours of one group are one span."""
    places = {
        id(p): (at, [*group.offsets, group.length][n + 1] - at)
        for n, (p, at) in enumerate(zip(group.parameters, group.offsets, strict=True))
    }
    spans = sorted(
        (*places[id(p)], number)
        for number, settings in enumerate(optimizer.param_groups)
        for p in settings["params"]
        if id(p) in places
    )
    parts: list[Part] = []
    for start, count, number in spans:
        settings = optimizer.param_groups[number]
        last = parts[-1] if parts else None
        if last and last.settings is settings and last.start + last.count == start:
            parts[-1] = Part(last.start, last.count + count, settings)
        else:
            parts.append(Part(start, count, settings))
    return parts


def _refusal(what: str) -> UsageError:
    return UsageError(
        f"{what} cannot be done by memory boxes - allowed: torch.optim SGD (momentum, nesterov, "
        "weight_decay), Adam, AdamW - do: rule.optimizer=worker, or another optimizer"
    )

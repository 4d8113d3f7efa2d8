"""Operations: what may be done to a shared buffer; ``kernels/reference.py`` defines each.

Wherever the buffer's memory is mapped, the worker runs the operation itself, under the locks
of the stripes; elsewhere the box runs it while the bytes arrive.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from dlplatform.errors import UsageError
from dlplatform.memorybox.commands import BETWEEN
from dlplatform.memorybox.payload import Payload
from kernels import cpu

if TYPE_CHECKING:
    from dlplatform.memorybox.buffer import SharedBuffer


@lru_cache(maxsize=1024)
def order_of(
    name: str, scalars: tuple[float, ...], format: str = "fp32", entries: int = 0
) -> cpu.Operation:
    """Return the kernels' record of an operation, made once."""
    return cpu.operation(name, scalars, format, entries)


class Operations:
    """The vector operations and optimizers of a buffer; x is local memory unless said otherwise.

    ``x`` may be an address of fp32 elements, a ``Payload`` of narrower ones, or, where
    ``BETWEEN`` names the operation, another buffer of the same cut: then the boxes do it all.
    """

    def apply(
        self, op: str, x: int | Payload | SharedBuffer = 0, z: int = 0, *, a: float = 1.0,
        b: float = 0.0, k: Sequence[float] = (), states: Sequence[SharedBuffer] = (),
        start: int = 0, count: int | None = None,
    ) -> None:  # fmt: skip
        """Run an operation on a span, locked stripe by stripe.

        Args:
            op: a name of ``kernels.cpu.OPERATIONS``.
            x: what goes in, for the first element of the span on.
            z: a second vector of local memory, where the operation has one.
            a: first scalar.
            b: second scalar.
            k: all scalars, instead of a and b.
            states: the buffers of an optimizer's state, cut like this one.
            start: first element.
            count: elements; the rest of the buffer by default.
        """
        raise NotImplementedError

    def scal(self, a: float) -> None:
        """Scale the buffer: y = a y (P-PS 56)."""
        self.apply("scal", a=a)

    def axpy(self, a: float, x: int | Payload | SharedBuffer) -> None:
        """Accumulate: y = y + a x (P-PS 56)."""
        self.apply("axpy", x, a=a)

    def axpby(self, a: float, x: int | Payload | SharedBuffer, b: float) -> None:
        """Blend: y = a x + b y (P-PS 56)."""
        self.apply("axpby", x, a=a, b=b)

    def clipped(self, a: float, x: int | Payload | SharedBuffer, limit: float) -> None:
        """Accumulate what is left after clipping each element: y = y + a min(max(x, -c), c)."""
        self.apply("clip", x, a=a, b=limit)

    def elastic(self, a: float, x: int) -> None:
        """Average elastically with local memory: both move by a (x - y) (arXiv:1412.6651)."""
        self.apply("elastic", x, a=a)

    def difference(self, a: float, x: int, z: int) -> None:
        """Move the buffer elastically and put the step into z, leaving x for later."""
        self.apply("difference", x, z, a=a)

    def merge(self, x: int, base: int) -> None:
        """Add what x gained over base, and bring x and base to the result."""
        self.apply("merge", x, base)

    def sgd(
        self, x: int | Payload | SharedBuffer, rate: float, momentum: SharedBuffer,
        mu: float = 0.0, decay: float = 0.0, nesterov: bool = False,
    ) -> None:  # fmt: skip
        """Step with gradient x: m = mu m + g; y = y - rate (nesterov ? g + mu m : m)."""
        self.apply("sgd", x, k=(rate, mu, decay, float(nesterov)), states=[momentum])

    def outer(
        self, x: int | Payload | SharedBuffer, rate: float, momentum: SharedBuffer, mu: float
    ) -> None:
        """Step towards a worker's weights x with Nesterov momentum (DiLoCo, arXiv:2311.08105)."""
        self.apply("outer", x, k=(rate, mu), states=[momentum])

    def adam(
        self, x: int | Payload | SharedBuffer, rate: float, moments: Sequence[SharedBuffer],
        betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, decay: float = 0.0,
        decoupled: bool = True,
    ) -> None:  # fmt: skip
        """Step with gradient x as AdamW does (decoupled), or Adam; the buffer counts its steps."""
        self.apply("adam", x, k=(rate, *betas, eps, decay, float(decoupled)), states=moments)

    def settle(self, a: float, gathered: SharedBuffer) -> None:
        """Fold a buffer into this one and zero it, in one pass: y = y + a s; s = 0."""
        self.apply("settle", k=(a,), states=[gathered])

    def gather(
        self, a: float, x: int | Payload | SharedBuffer, gathered: SharedBuffer, b: float = 1.0
    ) -> None:
        """Accumulate and keep the sum for later, in one pass: y = y + a x; s = s + b x."""
        self.apply("gather", x, k=(a, b), states=[gathered])

    def fold(
        self, scale: float, gathered: SharedBuffer, rate: float, momentum: SharedBuffer,
        mu: float = 0.0, now: float = 1.0, mark: bool = False,
    ) -> None:  # fmt: skip
        """Take an outer step with what was gathered, and begin to gather anew.

        g = scale t; m = mu m + g; y = y - rate (now g + mu m); t = 0, or a mark that this element
        has taken its step: a fold that is repeated leaves those alone.
        """
        self.apply("fold", k=(scale, rate, mu, now, float(mark)), states=[momentum, gathered])

    def delayed(self, x: int, rate: float, compensation: float, backup: SharedBuffer) -> None:
        """Step with a delayed gradient, and bring the new weights into x (arXiv:1609.08326).

        y = y - rate (g + compensation g g (y - backup)); backup = x = y. The backup is what this
        worker's gradient was computed with: one buffer a worker.
        """
        self.apply("delay", x, k=(rate, compensation), states=[backup])

    def adapted(
        self, x: int, rate: float, compensation: float, states: Sequence[SharedBuffer],
        decay: float = 0.95, eps: float = 1e-7,
    ) -> None:  # fmt: skip
        """Step as ``delayed`` does, compensation / sqrt(mean square + eps) instead of a constant.

        ``states`` are the worker's backup and the mean square of all workers' gradients.
        """
        self.apply("adapt", x, k=(rate, compensation, decay, eps), states=states)


def order(op: str, x: Any, a: float, b: float, k: Sequence[float]) -> cpu.Operation:
    """Return the kernels' record of an operation on x."""
    scalars = tuple(k) or (a, b)
    if isinstance(x, Payload):
        return order_of(op, scalars, x.format, x.entries)
    return order_of(op, scalars)


def check(op: str, x: Any, states: Sequence[Any], name: str, count: int) -> None:
    """Refuse what no box could do."""
    if op not in cpu.OPERATIONS:
        raise UsageError(
            f"operation {op!r} on {name} - allowed: {', '.join(cpu.OPERATIONS)} - do: name one"
        )
    if len(states) != cpu.STATES.get(op, 0):
        raise UsageError(
            f"{op} on {name} with {len(states)} states - allowed: {cpu.STATES.get(op, 0)} - do: "
            "give the buffers of its state"
        )
    if isinstance(x, Payload) and x.length != count:
        raise UsageError(
            f"{op} of {count} elements of {name} with a payload of {x.length} - allowed: {count} - "
            "do: make a payload of the span's length, or give start and count"
        )
    if x.__class__ is not int and not isinstance(x, int | Payload) and op not in BETWEEN:
        raise UsageError(
            f"{op} between {name} and {x.name} - allowed: {', '.join(BETWEEN)} - do: give local "
            "memory as x"
        )

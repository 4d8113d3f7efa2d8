"""``eamsgd``: elastic averaging with Nesterov momentum in every worker (arXiv:1412.6651, 3.2).

v = delta v + (1 - delta) u, where u is what the optimizer would have added; x = x + v; gradients
are computed at x + delta v, and x and the centre pull at each other as in ``easgd``. The paper's v
has no 1 - delta: its learning rate is this one times 1 - delta. The momentum is the rule's, so the
optimizer should be plain SGD.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dlplatform.errors import UsageError
from dlplatform.memorybox.memory import Memory
from dlplatform.rules.easgd import EASGD
from dlplatform.rules.rule import rule
from kernels import cpu

if TYPE_CHECKING:
    from dlplatform.flat import FlatGroup
    from dlplatform.job import Job


@rule("eamsgd")
@dataclass
class EAMSGD(EASGD):
    """Average weights elastically with a centre; every worker steps with Nesterov momentum."""

    momentum: float = 0.9
    """Nesterov momentum of a worker (delta); 0: easgd."""

    def start(self, job: Job, group: FlatGroup) -> None:
        """Share rank 0's weights as the centre; x lies beside the weights, which look ahead."""
        if not 0 <= self.momentum < 1:
            raise UsageError(
                f"rule.momentum={self.momentum} - allowed: 0 up to, not including, 1 - do: "
                "rule.momentum=0.9"
            )
        self._x, self._velocity = Memory(group.length), Memory(group.length)
        super().start(job, group)

    def gradients(self) -> None:
        """Wait for the exchange under way, and keep the point where gradients were computed."""
        super().gradients()
        self.group.copy_weight(self._x.address)

    def weights(self) -> None:
        """Step with momentum, exchange x, and look ahead for the next gradient."""
        ahead, x, v = self.group.weight_address, self._x.address, self._velocity.address
        n, delta = self.group.length, self.momentum
        cpu.run("axpby", x, ahead, n, 1.0, -1.0)  # u
        cpu.run("axpby", v, x, n, 1.0 - delta, delta)
        cpu.run("axpby", x, ahead, n, 1.0, -delta)
        super().weights()
        cpu.copy(ahead, x, 4 * n)
        cpu.run("axpy", ahead, v, n, delta)

    def _send(self, change: bool = False) -> int:
        return self._x.address

    def _subtract(self, difference: int) -> None:
        cpu.run("axpy", self._x.address, difference, self.group.length, -1.0)

    def finish(self) -> None:
        """Complete the last exchange; the weights are x now."""
        super().finish()
        if self.steps:
            cpu.copy(self.group.weight_address, self._x.address, 4 * self.group.length)

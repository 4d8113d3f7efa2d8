"""``quorum``: outer steps with those who come in time (after Decoupled DiLoCo, arXiv:2604.21428).

As ``diloco``, but a round is merged as soon as ``needed`` workers have brought their drift and a
grace window is over. The window follows the work: a share of the time between two exchanges. Who
comes later is in the next round's mean, weighted as all by minibatches^2 / steps. A round counts as
much as the share of the workers who came, so that many small rounds do not overshoot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dlplatform.errors import UsageError
from dlplatform.rules.diloco import DiLoCo, Round
from dlplatform.rules.rule import rule

if TYPE_CHECKING:
    from dlplatform.flat import FlatGroup
    from dlplatform.job import Job


@rule("quorum")
@dataclass
class QuorumDiLoCo(DiLoCo):
    """Take outer steps with those who come within a grace window."""

    momentum: float = 0.5
    """Nesterov momentum of the outer step."""
    delay: int = 1
    """Steps computed while an exchange is under way; 0: wait for it."""
    needed: int = 1
    """Workers that make a quorum."""
    patience: float = 0.1
    """Grace window, as a share of the time between two exchanges."""

    def start(self, job: Job, group: FlatGroup) -> None:
        """Share rank 0's weights and make a round of exchanges for every fragment."""
        if not 1 <= self.needed <= job.size or self.patience < 0:
            raise UsageError(
                f"rule.needed={self.needed} rule.patience={self.patience} of {job.size} workers - "
                f"allowed: 1 to {job.size}, and 0 or more - do: rule.needed=1 rule.patience=0.1"
            )
        super().start(job, group)

    def rounds(self, span: tuple[int, int]) -> Round:
        """Return the rounds of one fragment: a quorum is needed."""
        return Round(self, span, self.needed)

    def share(self, brought: int) -> float:
        """Return the share of all workers who came: nobody's drift counts more than its part."""
        gone = self.job.cluster.gone()
        living = sum(rank not in gone for rank in self.ranks()) - self.ended.value
        return brought / max(brought, living)

    def grace(self, seconds: float) -> float:
        """Return a share of the time that the last round took."""
        return self.patience * seconds

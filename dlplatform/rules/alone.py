"""``alone``: one worker, no exchange - the baseline every rule is measured against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dlplatform.errors import UsageError
from dlplatform.rules.rule import Rule, rule

if TYPE_CHECKING:
    from dlplatform.flat import FlatGroup
    from dlplatform.job import Job


@rule("alone")
@dataclass
class Alone(Rule):
    """Train one worker by itself, exchanging nothing."""

    reads_gradients: ClassVar[bool] = False

    def start(self, job: Job, group: FlatGroup) -> None:
        """Refuse company."""
        self.group = group
        if job.world.size > 1:
            raise UsageError(
                f"rule=alone with {job.world.size} workers - allowed: 1 - do: workers=1, or "
                "choose another rule (docs/rules.md)"
            )

    def master(self, into: int) -> None:
        """Copy this worker's weights."""
        self.group.copy_weight(into)

    def finish(self) -> None:
        """Have nothing to push."""

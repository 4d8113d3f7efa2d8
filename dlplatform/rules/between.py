"""Between groups: a rule that the leaders of synchronous groups follow, for ``hybrid``.

The leader of a group is a worker of the other rule; whatever that rule does to its weights is
brought to the members of its group, who hold equal weights again. So a group of workers with a
fast network between them is one worker of ``diloco``, ``quorum`` or ``adiloco``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dlplatform.errors import UsageError
from dlplatform.rules.rule import find_rule
from dlplatform.rules.ssgd import STALL_S

if TYPE_CHECKING:
    from dlplatform.job import Job
    from dlplatform.rules.hybrid import Hybrid

OTHERS = ("diloco", "quorum", "adiloco")
RING = 4
"""Steps a leader may be ahead of its slowest member: gradients keep them within one."""


class Leaders:
    """Another rule among the leaders, and how its changes reach their groups.

    Args:
        hybrid: the rule whose groups they are, with its group met.
        job: this worker's job.
        groups: places of the workers of each group.
    """

    def __init__(self, hybrid: Hybrid, job: Job, groups: list[list[int]]) -> None:
        if hybrid.between not in OTHERS:
            raise UsageError(
                f"rule.between={hybrid.between} - allowed: easgd, {', '.join(OTHERS)} - do: "
                "rule.between=easgd"
            )
        settings: dict[str, Any] = {"interval": hybrid.interval, "wire": hybrid.wire}
        if hybrid.rate is not None:
            settings["rate"] = hybrid.rate
        self.rule = find_rule(hybrid.between)(**settings)
        self.hybrid, self.group, self.cluster = hybrid, hybrid.group, hybrid.cluster
        self.buffers, self.ready = hybrid.differences, hybrid.ready
        self.steps = self.moved = 0
        if hybrid.leader:
            world = job.world.part([ranks[0] for ranks in groups])
            self.rule.start(replace(job, world=world, groups={}), self.group)
        else:
            self.weight = job.cluster.attach(job.cluster.lookup(f"buffer/{self.group.name}/weight"))
        self._bring(True)

    def _bring(self, moved: bool) -> None:
        """Bring the leader's weights to the members, if they moved; all call it once a step."""
        turn = self.cluster.counter(f"{self.hybrid.label}/moved/{self.steps % RING}")
        if self.hybrid.leader:
            if moved:
                self.buffers[self.moved % 2].write(self.group.weight_address)
            turn.set(int(moved))
            self.ready.add(1)
        else:
            self.ready.wait(self.steps + 1, STALL_S, self.hybrid.sync.check)
            moved = bool(turn.value)
            if moved:
                self.buffers[self.moved % 2].read(self.group.weight_address)
        self.moved += moved
        self.steps += 1

    def gradients(self) -> None:
        """Let the leader get ready for a change of its weights."""
        if self.hybrid.leader:
            self.rule.gradients()

    def weights(self) -> None:
        """Let the leader exchange, and bring what came of it to its group."""
        moved = False
        if self.hybrid.leader:
            before = self.rule.moves  # type: ignore[attr-defined]
            self.rule.weights()
            moved = self.rule.moves != before  # type: ignore[attr-defined]
        self._bring(moved)

    def master(self, into: int) -> None:
        """Copy the shared weights."""
        if self.hybrid.leader:
            self.rule.master(into)
        else:
            self.weight.read(into)

    def finish(self) -> None:
        """Let the leader push what is left, and bring what came of it to its group."""
        if self.hybrid.leader:
            self.rule.finish()
        self._bring(True)

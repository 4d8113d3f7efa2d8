"""``diloco``: many steps alone, then one outer step together (DiLoCo, arXiv:2311.08105).

Every ``interval`` steps the workers' drifts g from the shared weights w are averaged in the boxes,
which take an outer step with Nesterov momentum: m = mu m + g; w = w - rate (g + mu m). Everybody
goes on from w. With ``fragments`` the weights go in parts, one after another, with ``delay`` the
workers compute on while their drift is exchanged, with ``wire`` it travels in a narrow format
(Streaming DiLoCo, arXiv:2501.18512). With rate 1 and momentum 0 it is local SGD.

An exchange is a round of a quorum: who dies is not waited for, and what it had brought counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from dlplatform.errors import UsageError
from dlplatform.memorybox.memory import Memory
from dlplatform.memorybox.quorum import Quorum
from dlplatform.memorybox.session import JOINED
from dlplatform.rules.adiloco import states_of
from dlplatform.rules.asgd import check_interval
from dlplatform.rules.drift import Drift
from dlplatform.rules.easgd import UpdateThread
from dlplatform.rules.rule import Rule, rule
from dlplatform.rules.ssgd import STALL_S, shared_weights

if TYPE_CHECKING:
    from dlplatform.flat import FlatGroup
    from dlplatform.job import Job
    from dlplatform.memorybox.buffer import SharedBuffer
    from dlplatform.memorybox.counter import Counter
    from dlplatform.memorybox.payload import Payload

NO_GRACE = -1.0


@rule("diloco")
@dataclass
class DiLoCo(Rule):
    """Average the workers' drifts every few steps, and take an outer step with momentum."""

    survives: ClassVar[bool] = True
    reads_gradients: ClassVar[bool] = False
    elastic: ClassVar[bool] = True

    interval: int = 20
    """Steps between outer steps (H)."""
    rate: float = 0.7
    """Rate of the outer step."""
    momentum: float = 0.9
    """Nesterov momentum of the outer step."""
    fragments: int = 1
    """Parts of the weights that are exchanged at different steps."""
    delay: int = 0
    """Steps computed while an exchange is under way; 0: wait for it."""
    mix: float = 0.0
    """Share of an outer step that a worker leaves out, 0 to 1 (alpha of Streaming DiLoCo)."""
    wire: str = "fp32"
    """Format of the drift on its way: fp32, fp16, bf16, int8, topk or topk:SHARE."""

    def start(self, job: Job, group: FlatGroup) -> None:
        """Share rank 0's weights and make a round of exchanges for every fragment."""
        self._check()
        self.job, self.group = job, group
        self.steps = self.trained = 0
        self.weight = shared_weights(job, group)
        self.ended = job.cluster.counter(f"{group.name}/ended")
        create = states_of(job, group)
        self.velocity = create("momentum")
        self.gathered = create("gathered/0"), create("gathered/1")
        spans = [self.weight.share(n, self.fragments) for n in range(self.fragments)]
        first = [round((n + 1) * self.interval / self.fragments) for n in range(self.fragments)]
        pairs = zip(spans, first, strict=True)
        self.parts = [Fragment(self, span, step) for span, step in pairs if span[1]]

    def _check(self) -> None:
        check_interval("diloco", self.interval)
        limits = {
            "rate": (self.rate > 0, "above 0", "0.7"),
            "momentum": (0 <= self.momentum < 1, "0 up to, not including, 1", "0.9"),
            "fragments": (1 <= self.fragments <= self.interval, "1 to rule.interval", "1"),
            "delay": (0 <= self.delay < self.interval, "0 up to, not including, interval", "0"),
            "mix": (0 <= self.mix < 1, "0 up to, not including, 1", "0"),
        }
        for name, (good, allowed, instead) in limits.items():
            if not good:
                raise UsageError(
                    f"rule.{name}={getattr(self, name)} - allowed: {allowed} - do: "
                    f"rule.{name}={instead}"
                )

    def rounds(self, span: tuple[int, int]) -> Round:
        """Return the rounds of one fragment: all are needed."""
        return Round(self, span, self.job.size)

    def grace(self, seconds: float) -> float:
        """Return how long to wait for more than are needed, after a round of so many seconds."""
        return NO_GRACE

    def share(self, brought: int) -> float:
        """Return the weight of a round to which so many brought their drift."""
        return 1.0

    def ranks(self) -> Sequence[int]:
        """Return the ranks that exchange, those who came later included."""
        return self.job.world.members or self.job.cluster.ranks()

    def claim(self, job: Job) -> int | None:
        """Claim a number, and count it as trained by the next exchange."""
        number = job.work.next()
        self.trained += number is not None
        return number

    def weights(self) -> None:
        """Let every fragment whose turn it is be exchanged."""
        self.steps += 1
        for part in self.parts:
            part.step(self.steps)

    @property
    def moves(self) -> int:
        """Return how often the rule has replaced weights of this worker."""
        return sum(part.drift.adopted for part in self.parts)

    def master(self, into: int) -> None:
        """Copy the shared weights."""
        self.weight.read(into)

    def states(self) -> dict[str, SharedBuffer]:
        """Return the outer momentum."""
        return {"momentum": self.velocity}

    def finish(self) -> None:
        """Exchange what was learnt since the last time, fragment by fragment."""
        for part in self.parts:
            part.finish(self.steps)
        self.ended.add(1)

    def report(self) -> dict[str, float]:
        """Return how far the weights had drifted at the last exchange."""
        return {"sync/distance": sum(part.drift.length**2 for part in self.parts) ** 0.5}


class Round(Quorum):
    """Rounds of one fragment: complete when all who still train have brought their drift."""

    def __init__(self, rule: DiLoCo, span: tuple[int, int], needed: int) -> None:
        size = rule.job.size
        super().__init__(rule.weight, rule.gathered, min(needed, size), size, NO_GRACE, span)
        self.rule = rule
        self._folded = self._counter("folded")

    def bring(self, x: int | Payload, weight: float) -> int:
        """Contribute; return the round's number."""
        number = self.contribute(x, weight)
        self._brought(self.cluster.rank).set(number + 1)
        return number

    def _brought(self, rank: int) -> Counter:
        return self._counter(f"brought/{rank}")

    def complete(self, number: int, count: int, waited_s: float) -> bool:
        """Tell whether all are in, or enough and the grace is over, or nobody is missing."""
        if super().complete(number, count, waited_s):
            return True
        cluster, work = self.cluster, self.rule.job.work
        if not any(c.value for c in (self.rule.ended, work.idle, cluster.counter("departures"))):
            return False  # all are still training
        return not any(
            self._brought(rank).value <= number
            and cluster.state(rank) == JOINED
            and not work.idles(rank).value
            for rank in self.rule.ranks()
        )

    def fold(self, number: int, scale: float, gathered: SharedBuffer) -> None:
        """Take the outer step; whoever repeats it after a death takes no step twice."""
        start, count = self.span
        scale *= self.rule.share(self._counter(f"arrived/{number % 2}").value)
        states = [self.rule.velocity, gathered]
        apply = partial(self.target.apply, "fold", states=states, start=start, count=count)
        if self._folded.value <= number:
            apply(k=(scale, self.rule.rate, self.rule.momentum, 1.0, 1.0))
            self._folded.set(number + 1)
        apply(k=(0.0, 0.0, 1.0, 0.0, 0.0))  # takes the marks away


class Fragment:
    """A part of the weights and its exchanges, one every ``interval`` steps.

    Args:
        rule: whose.
        span: (start, count) in the group's vector.
        first: step of the first exchange.
    """

    def __init__(self, rule: DiLoCo, span: tuple[int, int], first: int) -> None:
        self.rule, self.span, self.next = rule, span, first
        self.drift = Drift(rule.group, rule.wire, span)
        self.round = rule.rounds(span)
        self.begun = self.due = self._trained = 0
        self._weight = 0.0
        self._sent: int | Payload = 0
        self._new = Memory(span[1])
        clock = rule.job.cluster.clock
        self._clock, self._at = clock, clock.now()
        self.update = UpdateThread(self._exchange, clock) if rule.delay else None

    def step(self, steps: int) -> None:
        """Adopt what an exchange brought, and begin the next one, when it is time."""
        if self.due and steps >= self.due:
            self._adopt()
        if steps >= self.next:
            self._begin(steps)
            self.next += self.rule.interval

    def _begin(self, steps: int) -> None:
        self._sent = self.drift.measure()
        self._weight = self._worth(steps - self.begun)
        self.begun = steps
        now = self._clock.now()
        self.round.grace_s, self._at = self.rule.grace(now - self._at), now
        if self.update:
            self.update.wake()
            self.due = steps + self.rule.delay
        else:
            self._exchange()
            self._adopt()

    def _worth(self, steps: int) -> float:
        """Return minibatches^2 / steps, in units of an interval (Decoupled DiLoCo)."""
        trained, self._trained = self.rule.trained - self._trained, self.rule.trained
        return (trained or steps) ** 2 / steps / self.rule.interval

    def _exchange(self) -> None:
        number = self.round.bring(self._sent, self._weight)
        self.round.wait(number, STALL_S)
        self.rule.weight.read(self._new.address, *self.span)

    def _adopt(self) -> None:
        if self.update:
            self.update.join()
        self.drift.adopt(self._new.address, self.rule.mix, late=self.update is not None)
        self.due = 0

    def finish(self, steps: int) -> None:
        """Complete the exchange under way and bring what was learnt since."""
        if self.due:
            self._adopt()
        if steps > self.begun:
            self._begin(steps)
            if self.due:
                self._adopt()
        if self.update:
            self.update.end()

"""``easgd``: elastic averaging, hidden behind computation (specs S3; P-HET; arXiv:1412.6651).

A worker's weights x and the shared centre g pull at each other: D = a (x - g); g += D; x -= D.
An update thread computes D and moves g while the next minibatch is computed; the training
thread takes D off x when it next changes x anyway. One flow lock passes between the two: the
training thread holds it while it changes the weights, the update thread while it reads them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dlplatform.errors import UsageError
from dlplatform.memorybox.memory import Memory
from dlplatform.memorybox.session import COMPANY
from dlplatform.memorybox.timing import CLOCK, Clock
from dlplatform.rules.asgd import Staleness, check_interval
from dlplatform.rules.rule import Rule, rule
from dlplatform.rules.ssgd import shared_weights
from kernels import cpu

if TYPE_CHECKING:
    from dlplatform.flat import FlatGroup
    from dlplatform.job import Job

BETA = 0.9
LOOK_EVERY = 8
"""Updates of the centre between looks at how many workers there are: one is a round trip."""


class UpdateThread:
    """The update thread of P-HET: woken after a step, moves the centre, hands D back."""

    def __init__(self, exchange: Callable[[], None], clock: Clock = CLOCK) -> None:
        self.exchange, self.clock = exchange, clock
        self.flow = clock.flow()
        self.busy = self.ended = False
        self.seconds = self.waited = 0.0
        self.error: BaseException | None = None
        self.joined = clock.start("update", self._run)

    def _run(self) -> None:
        while True:
            with self.flow:
                self.flow.wait_for(lambda: self.busy or self.ended)
                if not self.busy:
                    return
            begin = self.clock.now()
            try:
                self.exchange()
            except BaseException as error:
                self.error = error
            with self.flow:
                self.busy = False
                self.seconds += self.clock.now() - begin
                self.flow.notify_all()

    def wake(self) -> None:
        """Start an exchange of the weights as they are now; they must not change meanwhile."""
        with self.flow:
            self.busy = True
            self.flow.notify_all()

    def join(self) -> None:
        """Wait for the exchange under way; raise what went wrong in it."""
        begin = self.clock.now()
        with self.flow:
            self.flow.wait_for(lambda: not self.busy)
        self.waited += self.clock.now() - begin
        if self.error is not None:
            raise self.error

    def hidden(self) -> float:
        """Return which share of the exchanges since the last call nobody had to wait for."""
        with self.flow:
            share = 1.0 - self.waited / self.seconds if self.seconds else 0.0
            self.seconds = self.waited = 0.0
        return max(0.0, share)

    def end(self) -> None:
        """Let the thread return."""
        with self.flow:
            self.ended = True
            self.flow.notify_all()
        self.joined()


@rule("easgd")
@dataclass
class EASGD(Rule):
    """Average every worker's weights elastically with a centre, behind the computation."""

    survives: ClassVar[bool] = True
    reads_gradients: ClassVar[bool] = False
    elastic: ClassVar[bool] = True

    interval: int = 1
    """Steps between exchanges (tau)."""
    rate: float | None = None
    """Moving rate; none: 0.9 / workers, since a fixed rate stops averaging at many workers."""
    overlap: bool = True
    """Exchange behind the next minibatch; false: in one fused pass, in line."""
    window: int = 1
    """Steps an exchange may hide behind, 1 to interval; above 1 it works on a copy."""

    def start(self, job: Job, group: FlatGroup) -> None:
        """Share rank 0's weights as the centre and start the update thread."""
        check_interval("easgd", self.interval)
        if not 1 <= self.window <= self.interval:
            raise UsageError(
                f"rule.window={self.window} of rule.interval={self.interval} - allowed: 1 to "
                "interval - do: rule.window=1"
            )
        self.group, self.steps, self.age = group, 0, 0
        self.moving_rate = moving_rate(self.rate, job.world.size)
        self.cluster, self.members = job.cluster, job.world.members
        self.company, self.known = job.cluster.counter(COMPANY), -1
        self.centre = shared_weights(job, group)
        self.staleness = Staleness(self.centre)
        self.pending = False
        self.difference, self.sent = group.room(), 0
        self.copy = Memory(group.length) if self.overlap and self.window > 1 else None
        self.update = UpdateThread(self._exchange, job.cluster.clock) if self.overlap else None

    def _exchange(self) -> None:
        self.group.landed()
        self.centre.difference(self._rate(), self.sent, self.difference.address)
        self.group.lift(self.difference.address)
        self.staleness.count()

    def _rate(self) -> float:
        """Return the moving rate for as many as are here now, unless one is given."""
        look = self.known < 0 or self.staleness.mine % LOOK_EVERY == 0
        if self.rate is None and look and (now := self.company.value) != self.known:
            self.known = now
            here = [r for r in self.cluster.here() if not self.members or r in self.members]
            self.moving_rate = moving_rate(None, max(1, len(here)))
        return self.moving_rate

    def gradients(self) -> None:
        """Wait for the exchange under way: the weights it reads are about to change."""
        if self.update and not self.copy:
            self.update.join()

    def weights(self) -> None:
        """Take the last D off the weights and send them to the update thread."""
        self.age += 1
        if self.pending and self.age >= self.window:
            self._take()
        self.steps += 1
        if self.steps % self.interval:
            return
        if self.update:
            self.sent = self._send()
            if self.copy:
                self.group.landed()
                cpu.copy(self.copy.address, self.sent, 4 * self.group.length)
                self.sent = self.copy.address
            self.update.wake()
            self.pending, self.age = True, 0
        else:
            self.centre.elastic(self._rate(), self._send(True))
            self.staleness.count()

    def _send(self, change: bool = False) -> int:
        """Return where x is, for an exchange that only reads it, or for one that changes it."""
        return self.group.weight_address if change else self.group.hand_over()

    def _take(self) -> None:
        if self.update:
            self.update.join()
        self._subtract(self.difference.address)
        self.pending = False

    def _subtract(self, difference: int) -> None:
        self.group.take(difference)

    def master(self, into: int) -> None:
        """Copy the centre."""
        self.centre.read(into)

    def finish(self) -> None:
        """Complete the last exchange and end the update thread."""
        if self.pending:
            self._take()
        if self.update:
            self.update.join()
            self.update.end()

    def report(self) -> dict[str, float]:
        """Return staleness, the hidden share of the exchange, the distance to the centre."""
        figures = {"sync/staleness": float(self.staleness.last)}
        if self.update:
            figures["sync/hidden"] = self.update.hidden()
        if self.overlap and self.moving_rate:
            step = self.group.norm(self.difference.address)
            figures["sync/distance"] = step / self.moving_rate
        return figures


def moving_rate(rate: float | None, workers: int) -> float:
    """Return the moving rate: 0.9 / workers unless one is given (0 to 1)."""
    if rate is None:
        return BETA / workers
    if not 0 <= rate <= 1:
        raise UsageError(f"rule.rate={rate} - allowed: 0 to 1 - do: leave it out for 0.9 / workers")
    return rate

"""Stage: the steps of one worker of a pipeline, under either schedule.

A stage of S computes forward while fewer than S - stage micro-batches are alive in it, else it
computes the oldest one's backward: one forward, one backward (1F1B), a pipeline that is never
fuller than needed. ``1f1b`` lets it run empty after every minibatch, then the optimizer steps:
the result is that of the unsplit network. ``async`` lets it run on (PipeDream, arXiv:1806.03377):
each stage steps when a minibatch's gradients are there, and keeps the weights of its forward
until its backward; it runs empty only where the weights are judged and saved.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call

from dlplatform.device import computing, reseed
from dlplatform.errors import PeerLost
from dlplatform.pipeline.channel import Channel
from dlplatform.pipeline.pieces import pieces, samples
from dlplatform.seeds import derive
from dlplatform.task import Batch

if TYPE_CHECKING:
    from dlplatform.trainer import Trainer

END = -1
ASYNC = "async"


class Ticket(NamedTuple):
    """What travels with an activation: whose micro-batch it is, and how far the job was."""

    number: int
    """The minibatch; END: there are no more."""
    piece: int
    of: int
    position: int
    present: int
    drain: bool
    """Nothing follows before this one's gradients are back; at the END: stopped on request."""

    @property
    def complete(self) -> bool:
        """Tell whether this is its minibatch's last micro-batch."""
        return self.piece + 1 == self.of


@dataclass
class Flight:
    """A micro-batch between its forward and its backward."""

    ticket: Ticket
    source: Tensor
    result: Tensor
    """What the stage returned; in the last one the loss."""


class Stage:
    """A worker's part in a pipeline.

    Args:
        trainer: this worker's training; its only group is the stage.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.cut, self.work = trainer, trainer.cut, trainer.job.work
        self.cluster, self.split = trainer.job.cluster, trainer.cut.split(trainer.models)
        self.depth = self.cut.stages - self.cut.stage
        self.first, self.last = self.cut.stage == 0, self.depth == 1
        self.module = self.split.stages[self.cut.stage].train()
        ((self.group, _),) = trainer.groups.values()
        self.group.flat = True  # gradients of kept weights are added up there
        self.group.zero_grad()
        self.asynchronous = trainer.pipeline.schedule == ASYNC
        names = {p: name for name, p in self.module.named_parameters()}
        self.names = [names[p] for p in self.group.parameters]
        self.kept: dict[str, Tensor] = {}
        """A copy of the weights of now, for micro-batches that outlive the next step."""
        self.alive: deque[Flight] = deque()
        self.most = 0
        """The most micro-batches ever alive here at once."""
        count = self.cluster.size // self.cut.stages
        self.oldest = [self.cluster.counter(f"pipeline/{n}/oldest") for n in range(count)]
        self.pieces: list[Batch] = []
        self._connect()

    def _connect(self) -> None:
        """Open the channels to the stages before and after this one."""
        label, here = f"pipeline/{self.cut.pipeline}", self.cut.stage

        def channel(border: int, kind: str) -> Channel:
            slots = self.cut.stages - border
            return Channel(self.cluster, f"{label}/{border}/{kind}", slots, self.check)

        if not self.first:
            self.above, self.up = channel(here - 1, "forward"), channel(here - 1, "backward")
        if not self.last:
            self.down, self.below = channel(here, "forward"), channel(here, "backward")

    def check(self) -> None:
        """Raise PeerLost when any worker is gone: its pipeline's minibatches would be lost."""
        self.cluster.check()
        if gone := self.cluster.gone():
            who = ", ".join(f"{rank} (stage {rank % self.cut.stages})" for rank in gone)
            raise PeerLost(
                f"worker {who} is gone - allowed: every stage of every pipeline - do: continue "
                "with resume=auto"
            )

    def safe(self, position: int) -> int:
        """Return the number to resume from, if no pipeline held minibatches it would be this."""
        return min([position, *(held - 1 for one in self.oldest if (held := one.value))])

    # -- the schedule --------------------------------------------------------------------

    def steps(self) -> Iterator[float]:
        """Train to the end of the job; yield each minibatch's loss after its step."""
        coming = self._claimed() if self.first else self._received()
        value, flowing, ended = 0.0, True, False
        while self.alive or not ended:
            if flowing and len(self.alive) < self.depth:
                ticket, source = next(coming)
                ended = ticket.number == END
                flowing = not (ended or ticket.drain)
                if ended:
                    self._end(ticket)
                else:
                    self._forward(ticket, source)
                continue
            ticket, part = self._backward()
            value += part
            if ticket.complete:
                self._step(ticket)
                yield value
                value = 0.0
            flowing = not ended and (flowing or not self.alive)
        self.work.position = ticket.position if self.work.stopped else self.work.total

    def _claimed(self) -> Iterator[tuple[Ticket, Tensor]]:
        """Yield the micro-batches of claimed minibatches, at the first stage."""
        trainer, work, of = self.trainer, self.work, self.trainer.pipeline.microbatches
        while True:
            work.present = 0  # of an earlier number whose step may still be to come
            if (number := trainer.claim(self._ahead)) is None:
                break
            place = work.position, work.present
            drain = not self.asynchronous or work.position >= trainer.chief.due
            for n, piece in enumerate(pieces(self._load(number), of)):
                source = self.split.inputs(piece)
                yield Ticket(number, n, of, *place, drain and n + 1 == of), source
        yield Ticket(END, 0, 1, work.position, 0, work.stopped), torch.empty(0)

    @property
    def _ahead(self) -> int:
        """Return by how many rounds a stop must lie ahead, for all pipelines to know in time."""
        return 2 + 2 * self.cut.stages

    def _received(self) -> Iterator[tuple[Ticket, Tensor]]:
        """Yield what the stage before sends."""
        while True:
            source, words = self.above.receive()
            ticket = Ticket._make(map(int, words))
            if ticket.piece == 0 and ticket.number != END:
                self.work.rounds += 1
                self.trainer.heed(self._ahead)
            yield ticket, source.requires_grad_()

    def _load(self, number: int) -> Batch:
        reseed(derive(self.trainer.seed, "minibatch", number))
        return self.trainer.ahead.read(number)

    def _end(self, ticket: Ticket) -> None:
        """Pass on that no more minibatches come."""
        self.work.position, self.work.stopped = ticket.position, bool(ticket.drain)
        if not self.last:
            self.down.send(None, ticket)

    def _forward(self, ticket: Ticket, source: Tensor) -> None:
        path = ("minibatch", ticket.number, self.cut.stage, ticket.piece)
        loss = self._loss(ticket) if self.last else None
        reseed(derive(self.trainer.seed, *path))
        with computing(self.trainer.device, self.trainer.run.precision):
            result = self._compute(source)
            result = result if loss is None else loss(result)
        if not self.last:
            self.down.send(result.detach(), ticket)
        self.alive.append(Flight(ticket, source, result))
        self.most = max(self.most, len(self.alive))
        self._hold()

    def _compute(self, source: Tensor) -> Tensor:
        """Return the stage's output; where a step may come between, from a copy of the weights."""
        if not self.asynchronous or self.last:
            result: Tensor = self.module(source)
            return result
        if not self.kept:
            views = self.group.views(self.group.weight.clone())
            for name, view, p in zip(self.names, views, self.group.parameters, strict=True):
                self.kept[name] = view.detach().requires_grad_()
                self.kept[name].grad = p.grad
        result = functional_call(self.module, self.kept, (source,))
        return result

    def _loss(self, ticket: Ticket) -> Callable[[Tensor], Tensor]:
        """Return the loss of one micro-batch; those of a minibatch add up to its mean loss."""
        if ticket.piece == 0:
            self.pieces = pieces(self._load(ticket.number), ticket.of)
        piece, total = self.pieces[ticket.piece], sum(map(samples, self.pieces))
        return lambda result: self.split.loss(result, piece) * (samples(piece) / total)

    def _backward(self) -> tuple[Ticket, float]:
        """Compute the oldest micro-batch's backward; return its part of the loss."""
        flight = self.alive.popleft()
        if flight.ticket.piece == 0:
            self.group.zero_grad()
        result = flight.result
        if self.last:
            result.backward()  # type: ignore[no-untyped-call]
            value = float(result.detach())
        else:
            gradient, (value,) = self.below.receive()
            result.backward(gradient.to(result.dtype))  # type: ignore[no-untyped-call]
        if not self.first:
            assert flight.source.grad is not None, "a stage's output depends on its input"
            self.up.send(flight.source.grad, (value,))
        self.trainer.must_be_finite(value)
        return flight.ticket, value

    def _step(self, ticket: Ticket) -> None:
        self.work.position, self.work.present = ticket.position, ticket.present
        self.trainer.set_rates()
        self.trainer.apply(ticket.number)
        self.kept = {}
        self._hold()

    def _hold(self) -> None:
        """Write down the oldest minibatch that this pipeline has not trained yet."""
        if self.first and self.asynchronous:
            oldest = self.alive[0].ticket.number if self.alive else END
            self.oldest[self.cut.pipeline].set(oldest + 1)

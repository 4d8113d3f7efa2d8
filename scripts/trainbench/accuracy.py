"""Seconds of training to 97 % test accuracy on zoo/digits: our rules beside torch DDP.

The same task object, optimizer, rate, minibatches and first weights; two workers. The clock
stands still while rank 0 evaluates (under ``easgd`` and ``hybrid`` the centre, which is the
job's result).
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from boxbench.rows import Missing

from dlplatform.memorybox.process import Boxes
from trainbench import processes
from trainbench.processes import Plan, Result, Seat, play
from trainbench.rows import Row, Settings

TARGET, WORKERS, MINIBATCHES = 0.97, 2, 2000
BEGIN, EVERY = 80, 10
DDP, RULES = "ddp", ("ssgd", "easgd", "hybrid")
SEEDS, ENOUGH_S = (5, 1), 110.0
"""Seeds, and after how long no further one begins."""


class Run:
    """One training of zoo/digits by one system, from a seed."""

    def __init__(self, seat: Seat, how: str, seed: int) -> None:
        import torch

        import dlplatform
        from trainbench.contest import ddp
        from trainers.zoo.digits import Digits

        self.seat, self.how, self.seed = seat, how, seed
        self.task = Digits(seed=seed, minibatches=MINIBATCHES)
        torch.manual_seed(seed)
        self.models = self.task.models()
        net = self.models["net"]
        self.optimizer = self.task.optimizer("main", net.parameters())
        if how == DDP:
            self.models = {"net": ddp(net)}
        else:
            self.name = f"{how}/{seed}"
            dlplatform.distribute(self.optimizer, net, how, name=self.name)
        self.judged = self.task.models()

    def step(self, number: int) -> None:
        """Train this worker's minibatch of a round."""
        import torch

        mine = number * WORKERS + self.seat.rank
        torch.manual_seed(self.seed * MINIBATCHES + mine)
        for group in self.optimizer.param_groups:
            group["lr"] = self.task.lr * self.task.rate(min(1.0, mine / MINIBATCHES))
        self.optimizer.zero_grad()
        loss: Any = self.task.loss(self.models, self.task.batch("train", mine))
        loss.backward()
        self.optimizer.step()

    def accuracy(self) -> float:
        """Return the test accuracy of what the system calls its result."""
        import torch

        net = self.judged["net"]
        if self.how == DDP:
            net.load_state_dict(self.models["net"].module.state_dict())
        else:
            group, rule = self.seat.job.groups[self.name]
            flat = torch.empty(group.length)
            rule.master(flat.data_ptr())
            with torch.no_grad():
                for p, value in zip(net.parameters(), group.views(flat), strict=True):
                    p.copy_(value)
        return self.task.score(self.judged, self.task.batches("test"))["accuracy"]

    def reach(self) -> float:
        """Train until the accuracy is reached; return the seconds of training.

        Raises:
            RuntimeError: when the minibatches end before.
        """
        seconds, label = 0.0, f"{self.how}/{self.seed}"
        for first in itertools.chain([0], range(BEGIN, MINIBATCHES // WORKERS, EVERY)):
            self.seat.meet()
            begin = time.perf_counter()
            for number in range(first, BEGIN if first == 0 else first + EVERY):
                self.step(number)
            self.seat.meet()
            seconds += time.perf_counter() - begin
            done = self.seat.rank == 0 and self.accuracy() >= TARGET
            if self.seat.agree(f"{label}/{first}", done):
                return seconds
        raise RuntimeError(f"{label} did not reach {TARGET:.0%} in {MINIBATCHES} minibatches")


def work(seat: Seat) -> Result:
    """Train by every system in turns, seed by seed, after a short untimed training."""
    import torch

    from trainbench.contest import open_gloo

    torch.set_num_threads(1)
    open_gloo(seat)
    warm: Callable[[int], None] = Run(seat, DDP, 0).step
    for number in range(10):
        warm(number)
    times: Result = {how: [] for how in (DDP, *RULES)}
    end = time.monotonic() + ENOUGH_S
    for seed in range(1, seat.plan.more["seeds"] + 1):
        if seed > 1 and seat.agree(f"enough/{seed}", time.monotonic() > end):
            break
        for how in times:
            times[how].append(Run(seat, how, seed).reach())
    return times


def rows(settings: Settings) -> Iterator[Row]:
    """Measure the time to accuracy of ssgd, easgd and hybrid beside DDP."""
    seeds, titles = settings.pick(*SEEDS), {}
    for how in RULES:
        name = f"zoo/digits to {TARGET:.0%} test accuracy, 2 workers: {how}"
        titles[how] = Row("digits", name, "torch DDP, gloo on lo", unit="s")
    try:
        with Boxes(1) as boxes, tempfile.TemporaryDirectory() as folder:
            more = {"seeds": seeds, "store": f"{folder}/store"}
            times = play(Plan(boxes.addresses, boxes.secret, WORKERS, more), "accuracy")[0]
    except Missing as error:
        for row in titles.values():
            row.missing = str(error)
        times = {}
    for how, row in titles.items():
        row.ours, row.theirs = times.get(how, []), times.get(DDP, [])
        row.note = f"{len(row.ours)} seeds, one turn each; evaluation and start-up not counted"
        yield row


if __name__ == "__main__":
    processes.main(work, sys.argv[1:])

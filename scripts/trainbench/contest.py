"""Two workers on two cores or one GPU: the same steps by several systems, in turns."""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from boxbench.rows import MIB, Missing
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

import dlplatform
from dlplatform.memorybox.process import Boxes
from trainbench import nets, processes
from trainbench.model import here
from trainbench.nets import NETS, size
from trainbench.processes import Plan, Result, Seat, play
from trainbench.rows import Row, Settings, rates

ALONE, DDP, GPU = "alone", "ddp", "gpu"
LR, MOMENTUM, WARM = 0.01, 0.9, 2
Step = Callable[[], None]


def place(net: str) -> str:
    """Return the device of a network's workers."""
    return "cuda" if net == GPU else "cpu"


def open_gloo(seat: Seat) -> None:
    """Join the gloo group of all workers, on the loopback device."""
    store = f"file://{seat.plan.more['store']}"
    dist.init_process_group("gloo", init_method=store, rank=seat.rank, world_size=seat.plan.size)


def ddp(model: nn.Module) -> nn.Module:
    """Return a model under torch DDP, told all that makes it fast."""
    return DistributedDataParallel(model, gradient_as_bucket_view=True, static_graph=True)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer of all contestants."""
    return torch.optim.SGD(model.parameters(), LR, MOMENTUM)


def contestant(how: str, net: str, seat: Seat, **settings: Any) -> Step:
    """Return a training step of a network: alone, by DDP, or by a rule of this platform."""
    model = nets.make(net, seed=1).to(place(net))
    optimizer = sgd(model)
    if how == DDP:
        model = ddp(model)
    elif how != ALONE:
        rule, _, interval = how.partition("/")
        rule, _, bucket = rule.partition("+")
        settings |= {"interval": int(interval)} if interval else {}
        settings |= {"bucket_mb": float(bucket)} if bucket else {}
        name = "-".join([rule, net, *(str(value) for value in settings.values())])
        dlplatform.distribute(optimizer, model, rule, name=name, **settings)
    return step_of(model, optimizer, net, seat)


def step_of(
    model: nn.Module, optimizer: torch.optim.Optimizer, net: str, seat: Seat,
    after: Step | None = None,
) -> Step:  # fmt: skip
    """Return one step as any script has it; ``after`` follows the optimizer's."""
    pool = itertools.cycle(nets.batches(net, seat.rank, place(net)))

    def step() -> None:
        x_BCHW, labels = next(pool)
        optimizer.zero_grad()
        functional.cross_entropy(model(x_BCHW), labels).backward()
        optimizer.step()
        if after:
            after()

    return step


def take_turns(seat: Seat, steps: dict[str, Step], rounds: int, count: int) -> Result:
    """Time ``count`` steps of each contestant in every round; all workers begin together.

    Before each turn come a few untimed steps: memory is touched, caches are warm.
    """
    times: Result = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            seat.meet()
            for _ in range(WARM):
                step()
            settle()
            seat.meet()
            begin = time.perf_counter()
            for _ in range(count):
                step()
            settle()
            if turn:  # the first round warms up
                times[name].append(time.perf_counter() - begin)
    return times


def settle() -> None:
    """Wait for the GPU, where one is in use."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def slowest(results: Sequence[Result]) -> Result:
    """Return of every turn the slowest worker's time."""
    return {name: [max(turn) for turn in zip(*(one[name] for one in results), strict=True)]
            for name in results[0]}  # fmt: skip


def work(seat: Seat) -> Result:
    """Run every contestant of the plan in turns."""
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")  # TF32 on a GPU; nothing on the CPU
    open_gloo(seat)
    more = seat.plan.more
    steps = {how: contestant(how, more["net"], seat) for how in more["hows"]}
    times = take_turns(seat, steps, more["rounds"], more["steps"])
    dist.destroy_process_group()
    return times


# -- the driver ---------------------------------------------------------------------------------


RULES = ("ssgd", "easgd", "easgd/16", "hybrid")
"""Rules, some with an interval (/16), some with buckets of so many MiB (+8)."""
ON_GPU = (*RULES, "ssgd+8", "ssgd+32", "asgd", "diloco/16", "localsgd/16")
WORKERS, ROUNDS = 2, (8, 1)
NAMES = {ALONE: "2 workers that exchange nothing", DDP: "torch DDP, gloo on lo"}


def rules_of(name: str) -> list[str]:
    """Return the rules for a network: intervals only where the exchange weighs."""
    if name == GPU:
        return list(ON_GPU)
    return [how for how in RULES if "/" not in how or NETS[name].required > 1]


def times_of(name: str, settings: Settings) -> Result:
    """Measure seconds a turn of every contestant, the slowest worker's.

    Raises:
        Missing: when a worker fails.
    """
    with Boxes(1) as boxes, tempfile.TemporaryDirectory() as folder:
        more = {
            "net": name, "hows": [DDP, *rules_of(name), ALONE], "rounds": settings.pick(*ROUNDS),
            "steps": settings.pick(NETS[name].steps, 2), "store": f"{folder}/store",
        }  # fmt: skip
        plan = Plan(boxes.addresses, boxes.secret, WORKERS, more)
        return slowest(play(plan, "contest"))


def say(how: str) -> str:
    """Return a contestant as people call it."""
    if how == DDP:
        return "torch DDP"
    return how.replace("/", ", interval ").replace("+", ", buckets of MiB: ")


def rows_of(name: str, times: Result, samples: int) -> Iterator[Row]:
    """Yield the rows of one network, each rule beside DDP and beside no exchange."""
    net, speed = NETS[name], {how: rates(times[how], samples) for how in times}
    step = WORKERS * net.batch / max(speed[ALONE])
    weights = f"weights {size(name) / MIB:.1f} MiB"
    for how in rules_of(name):
        row = Row(name, f"{net.title}: {say(how)}", NAMES[DDP], note=weights)
        row.required = net.required if how.partition("+")[0] == "ssgd" else None
        row.ours, row.theirs = speed[how], speed[DDP]
        if name != GPU:
            row.predicted = here(step, size(name), DDP) / here(step, size(name), how)
        yield row
    for how in (*rules_of(name), DDP):
        row = Row(name, f"{net.title}: {say(how)}", NAMES[ALONE])
        row.required = 0.97 if how.startswith("easgd") else None
        row.ours, row.theirs = speed[how], speed[ALONE]
        if name != GPU:
            row.predicted = step / here(step, size(name), how)
        yield row


def rows(name: str, settings: Settings) -> Iterator[Row]:
    """Measure one network."""
    try:
        times = times_of(name, settings)
    except Missing as error:
        yield Row(name, NETS[name].title, NAMES[DDP], missing=str(error))
        return
    yield from rows_of(name, times, WORKERS * NETS[name].batch * settings.pick(NETS[name].steps, 2))


def mlp(settings: Settings) -> Iterator[Row]:
    """Measure the wide perceptron."""
    yield from rows("mlp", settings)


def vgg(settings: Settings) -> Iterator[Row]:
    """Measure the small VGG."""
    yield from rows("vgg", settings)


def cnn(settings: Settings) -> Iterator[Row]:
    """Measure the CNN that computes more than it communicates."""
    yield from rows("cnn", settings)


def gpu(settings: Settings) -> Iterator[Row]:
    """Measure a transformer on a GPU that two workers share."""
    if torch.cuda.is_available():
        yield from rows(GPU, settings)
    else:
        yield Row(GPU, NETS[GPU].title, NAMES[DDP], missing="no GPU")


if __name__ == "__main__":
    processes.main(work, sys.argv[1:])

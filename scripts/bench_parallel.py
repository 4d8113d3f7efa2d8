"""Four forms of parallel computing, each beside the same work done one after another.

python scripts/bench_parallel.py                  # a table, about two minutes
python scripts/bench_parallel.py --page           # and docs/benchmarks/parallel.md
python scripts/bench_parallel.py --quick --force  # a smoke run, however busy the machine is

The forms: independent jobs, one job divided among workers, threads within a worker, operations
that do not depend on each other.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT)]

from boxbench.report import Watch  # noqa: E402
from boxbench.rows import environment  # noqa: E402

from launch import bench  # noqa: E402

PAGE = ROOT / "docs" / "benchmarks" / "parallel.md"
WORKERS, ROUNDS, STEPS = 2, 5, 40
JOB, DIVIDED, BUCKETS = "job", "divided", 1.0
HEADS = ("form", "in turn", "at once", "speed-up", "efficiency", "same result")
REFUSED = 3


@dataclass
class Form:
    """One form: seconds for the same work in turn and at once, a figure a round."""

    name: str
    units: int
    """That compute at once."""
    turn: list[float] = field(default_factory=list)
    once: list[float] = field(default_factory=list)
    same: str = "-"
    """Whether the results are the same, where they must be."""

    def cells(self) -> list[str]:
        """Return a line of the table; figures are medians."""
        turn, once = statistics.median(self.turn), statistics.median(self.once)
        gain = turn / once
        figures = (f"{turn:.2f} s", f"{once:.2f} s", f"{gain:.2f}", f"{gain / self.units:.0%}")
        return [self.name, *figures, self.same]


# -- a worker -----------------------------------------------------------------------------------


def work(seat: Any) -> dict[str, Any]:
    """Train a network for some steps; return the seconds, and a digest of the weights."""
    import torch
    from trainbench import contest, nets

    import dlplatform

    torch.set_num_threads(1)
    more = seat.plan.more
    model = nets.make(more["net"], seed=1)
    optimizer = contest.sgd(model)
    rule = {name: value for name, value in more["rule"].items() if name != "name"}
    dlplatform.distribute(optimizer, model, more["rule"]["name"], name=more["net"], **rule)
    step = contest.step_of(model, optimizer, more["net"], seat)
    step()
    seat.meet()
    begin = time.perf_counter()
    for _ in range(more["steps"]):
        step()
    seconds = time.perf_counter() - begin
    whole = torch.cat([p.detach().flatten() for p in model.parameters()])
    return {"s": seconds, "digest": hashlib.sha256(whole.numpy().tobytes()).hexdigest()}


# -- the driver ---------------------------------------------------------------------------------


def run(boxes: Any, job: str, size: int, steps: int, net: str, **rule: Any) -> list[dict[str, Any]]:
    """Run a job of its own name in the boxes; return what its workers found."""
    from trainbench.processes import Plan, play

    more = {"net": net, "steps": steps, "rule": rule}
    plan = Plan(boxes.addresses, boxes.secret, size, more, job)
    mine = [str(Path(__file__).resolve()), "--worker"]
    return play(plan, "forms", place=lambda rank, line: [line[0], *mine, *line[3:]])


def slowest(found: Sequence[dict[str, Any]]) -> float:
    """Return the seconds of the slowest worker."""
    return max(float(one["s"]) for one in found)


def jobs(boxes: Any, rounds: int, steps: int) -> Form:
    """Run two jobs of one worker one after the other, and at once in the same boxes."""
    form, digests = Form("two independent jobs (programs)", 2), set()
    plan = {"net": "cnn", "name": "ssgd"}
    for n in range(rounds):
        alone = [run(boxes, f"{JOB}{n}{i}", 1, steps, **plan) for i in range(2)]
        with ThreadPoolExecutor() as pool:
            each = [pool.submit(run, boxes, f"{JOB}{n}{i}", 1, steps, **plan) for i in (2, 3)]
            both = [one.result() for one in each]
        form.turn.append(sum(map(slowest, alone)))
        form.once.append(max(map(slowest, both)))
        digests |= {worker["digest"] for job in (*alone, *both) for worker in job}
    form.same = "yes" if len(digests) == 1 else "NO"
    return form


def divided(boxes: Any, rounds: int, steps: int) -> Form:
    """Train as many minibatches by one worker, and divided among several."""
    form = Form(f"one job divided among {WORKERS} workers (ssgd)", WORKERS)
    for n in range(rounds):
        whole = run(boxes, f"{DIVIDED}{n}1", 1, WORKERS * steps, "cnn", name="ssgd")
        parts = run(boxes, f"{DIVIDED}{n}2", WORKERS, steps, "cnn", name="ssgd")
        form.turn.append(slowest(whole))
        form.once.append(slowest(parts))
        form.same = "yes" if len({one["digest"] for one in parts}) == 1 else "NO"
    return form


def beside(boxes: Any, rounds: int, steps: int, name: str, *rules: dict[str, Any]) -> Form:
    """Train by the same rule with exchanges after the computation, and beside it."""
    form = Form(name, 1)
    for n in range(rounds):
        for i, (rule, found) in enumerate(zip(rules, (form.turn, form.once), strict=True)):
            job = f"{rule['name']}{n}{i}"
            found.append(slowest(run(boxes, job, WORKERS, steps, "mlp", **rule)))
    return form


def branches(rounds: int, steps: int) -> Form:
    """Compute four branches of one input one after another, and in threads."""
    import torch
    from torch import nn

    torch.set_num_threads(1)
    torch.manual_seed(0)
    nets = [nn.Conv2d(32, 32, size, padding=size // 2) for size in (1, 3, 5, 7)]
    x_BCHW = torch.randn(8, 32, 32, 32)
    form = Form("four branches without data dependence, 2 threads", 2)

    def forward(net: nn.Module) -> torch.Tensor:
        with torch.no_grad():
            answer: torch.Tensor = net(x_BCHW)
        return answer

    with ThreadPoolExecutor(2) as pool:
        ways: list[Callable[..., Any]] = [map, pool.map]
        for _ in range(rounds):
            for way, found in zip(ways, (form.turn, form.once), strict=True):
                begin = time.perf_counter()
                for _ in range(steps):
                    list(way(forward, nets))
                found.append(time.perf_counter() - begin)
        pairs = zip(*(way(forward, nets) for way in ways), strict=True)
        form.same = "yes" if all(torch.equal(one, other) for one, other in pairs) else "NO"
    return form


def measure(quick: bool) -> Iterator[Form]:
    """Measure all forms; a smoke run only those that must end alike at once and in turn."""
    from dlplatform.memorybox.process import Boxes

    rounds, steps = (1, 1) if quick else (ROUNDS, STEPS)
    with Boxes(1) as boxes:
        yield jobs(boxes, rounds, steps)
        yield divided(boxes, rounds, steps)
        if not quick:
            yield beside(
                boxes, rounds, steps, "exchange in a thread beside computation (easgd)",
                {"name": "easgd", "overlap": False}, {"name": "easgd", "overlap": True},
            )  # fmt: skip
            yield beside(
                boxes, rounds, steps, "gradients sent while earlier layers are computed (ssgd)",
                {"name": "ssgd", "bucket_mb": 0.0}, {"name": "ssgd", "bucket_mb": BUCKETS},
            )  # fmt: skip
    yield branches(rounds, steps)


def page(forms: Sequence[Form], watch: dict[str, Any], quick: bool) -> str:
    """Return the page."""
    machine = bench.machine()
    fit = "" if watch["publishable"] and not quick else (
        "**The machine was busy, or this was a smoke run: these figures show that it runs, and "
        "are to be measured again.**\n\n"
    )  # fmt: skip
    table = [HEADS, ["---"] * len(HEADS), *(form.cells() for form in forms)]
    lines = "\n".join("| " + " | ".join(line) + " |" for line in table)
    return f"""# Forms of parallel computing

Written by `python scripts/bench_parallel.py --page`: {machine["cpu"]}, {machine["cores"]} cores,
Linux {machine["kernel"]}, {machine["date"]}; load average {watch["load_before"]} before.

{fit}{lines}

- Figures are medians of rounds in which both ways take turns. Speed-up is the time in turn over
  the time at once; efficiency is the speed-up over the number of units that compute at once.
- **Independent jobs**: two programs share the memory boxes, each with a name of its own. The
  result is the same if all end with the same weights, bit by bit, as each does alone.
- **One job divided**: as many minibatches, dealt to {WORKERS} workers. The result is the same if
  both workers end with the same weights, bit by bit.
- **Threads**: in both rows of an exchange the workers are {WORKERS} either way; what is gained is
  time that computation would have waited, so the number of units is 1.
- **Operations without data dependence**: a layer's gradients leave while those of the layers
  before it are computed; branches of one input are computed at once, with the same result.
"""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    p = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    p.add_argument("--quick", action="store_true", help="a smoke run: one round, few steps")
    p.add_argument("--page", type=Path, nargs="?", const=PAGE, metavar="FILE",
                   help="write the page (default: docs/benchmarks/parallel.md)")  # fmt: skip
    p.add_argument("--force", action="store_true", help="measure although the machine is busy")
    return p.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the page if asked for; return the exit code."""
    options, watch = parse(argv), Watch()
    if watch.load > bench.NOISY and not options.force:
        said = f"load average {watch.load} is above {bench.NOISY} - allowed: a quiet machine"
        print(f"bench_parallel: error: {said} - do: wait, or give --force", file=sys.stderr)
        return REFUSED
    os.environ |= environment()
    forms = []
    for form in measure(options.quick):
        forms.append(form)
        print(" | ".join(form.cells()), flush=True)
    if options.page:
        options.page.write_text(page(forms, watch.data(), options.quick))
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        from trainbench import processes

        processes.main(work, sys.argv[2:])
    else:
        sys.exit(main())

"""A model of training time: bytes, links, boxes, memory streams, intervals; pure functions.

Bytes M, workers n, boxes s, bytes a second and direction B of a box's link, W of a worker's,
seconds. Formulas: the lower bounds that BytePS (OSDI'20) and nccl-tests state; ShmCaffe
(ICDCS'18); and the exchanges of ``dlplatform/rules`` as they are written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

INF = math.inf
MIB = 1 << 20
FUSED, AVERAGE, GLOO = (ms * 1e-3 / (64 * MIB) for ms in (13.6, 6.72, 54.3))
"""Seconds a byte of an elastic pass (4 streams), of a sum of 2 workers in place, and of gloo's.

Measured alone: docs/benchmarks/box.md.
"""
TAKE = FUSED * 3 / 4
HERE = {"ssgd": AVERAGE, "hybrid": AVERAGE + FUSED + TAKE, "easgd": FUSED + TAKE, "ddp": GLOO}
VIEWS = FUSED
"""Gradients that stay where they are: zeroed and added to, 4 streams; others are just written."""


@dataclass(frozen=True)
class Net:
    """What connects workers and boxes.

    Args:
        workers: n.
        boxes: s.
        box_rate: B, bytes a second and direction of one box's link.
        worker_rate: W, the same of a worker's; infinite: boxes are the bound.
        memory_rate: bytes a second of a box's memory.
        duplex: whether both directions run at full rate at the same time.
    """

    workers: int
    boxes: int
    box_rate: float
    worker_rate: float = INF
    memory_rate: float = INF
    duplex: bool = True

    def one_way(self, size: float, streams: float = 0.0, senders: int = 0) -> float:
        """Return seconds until all workers' vectors have gone one way: M/W, or nM/(sB)."""
        n = senders or self.workers
        memory = n * size * streams / (self.boxes * self.memory_rate)
        return max(size / self.worker_rate, n * size / (self.boxes * self.box_rate), memory)

    def both_ways(self, size: float, streams: float = 0.0, senders: int = 0) -> float:
        """Return seconds for there and back at the same time, where the links allow that."""
        way = self.one_way(size, 0.0, senders) * (1 if self.duplex else 2)
        return max(way, self.one_way(size, streams, senders) if streams else 0.0)


def ring(n: int, size: float, rate: float) -> float:
    """Return seconds of a ring all-reduce: 2 (n - 1) / n * M / B."""
    return 2 * (n - 1) / n * size / rate


def byteps(n: int, k: int, size: float, rate: float) -> float:
    """Return seconds of BytePS with k CPU hosts: 2 n (n - 1) M / ((n^2 + k n - 2 k) B)."""
    return 2 * n * (n - 1) * size / ((n * n + k * n - 2 * k) * rate)


def pushpull(n: int, s: int, size: float, rate: float) -> float:
    """Return seconds of s servers beside n workers, pipelined both ways: max(M/B, nM/(sB))."""
    return max(size / rate, n * size / (s * rate))


def ssgd(net: Net, compute: float, size: float) -> float:
    """Return a step of ``ssgd`` over a network: compute, write, then read; nothing is hidden."""
    return compute + 2 * net.one_way(size)


def easgd(
    net: Net, compute: float, size: float, interval: int = 1, senders: int = 0, window: int = 1
) -> float:
    """Return a step of ``easgd``: an exchange hides behind the ``window`` steps that follow it.

    All workers are taken to exchange at the same moment, the worst case; 4 memory streams.
    """
    exchange = net.both_ways(size, 4.0, senders)
    return compute + max(0.0, exchange - window * compute) / interval


def hybrid(net: Net, compute: float, size: float, group: int, interval: int = 1) -> float:
    """Return a step of ``hybrid`` with its groups' gradients in the same boxes.

    Members write and read gradients in view. A leader exchanges behind the next step's
    computation and writes D for its group; each other member reads D in view.
    """
    leaders = -(-net.workers // group)
    inside = 2 * net.one_way(size) if group > 1 else 0.0
    hidden = net.both_ways(size, 4.0, leaders) + net.one_way(size, senders=leaders)
    late = max(0.0, hidden - compute - inside)
    taken = net.one_way(size) if group > 1 else 0.0
    return compute + inside + (taken + late) / interval


def hybrid_nodes(net: Net, compute: float, size: float, group: int, interval: int = 1) -> float:
    """Return a step of ``hybrid`` whose groups meet inside a node: leaders only use the links."""
    return easgd(net, compute, size, interval, -(-net.workers // group))


def shmcaffe(net: Net, compute: float, size: float) -> float:
    """Return a step of ShmCaffe: max(T_comp, T_wwi + T_ugw) + T_rgw; writes hide, reads do not.

    Its server adds with 3 memory streams after the bytes have come.
    """
    way = net.one_way(size)
    added = 3 * net.workers * size / (net.boxes * net.memory_rate)
    return max(compute, way + added) + way


def share(step: float, compute: float) -> float:
    """Return the share of a step that is not computation."""
    return (step - compute) / step


def compute_of(communication: float, part: float) -> float:
    """Return the computation beside which a visible communication takes a part of a step."""
    return communication * (1 - part) / part


def here(step: float, size: float, how: str) -> float:
    """Return a step of two workers on this machine's shared memory or loopback device.

    ``how`` may name an interval: ``easgd/16``. Two busy cores hide nothing: what an update thread
    does costs the training thread time. DDP keeps its gradients in buckets, so views in both.
    """
    rule, _, interval = how.partition("/")
    return step + (HERE[rule] / int(interval or 1) + VIEWS) * size


def boxes_needed(net: Net, compute: float, size: float, interval: int, loss: float = 0.03) -> int:
    """Return the fewest boxes with which ``easgd`` keeps all but ``loss`` of its speed."""
    allowed = compute * (1 + interval * loss / (1 - loss))
    rate = min(net.box_rate, net.memory_rate / 4.0) * (1.0 if net.duplex else 0.5)
    return max(1, math.ceil(net.workers * size / (rate * allowed) - 1e-9))


def interval_needed(net: Net, compute: float, size: float, loss: float = 0.03) -> int:
    """Return the shortest interval with which ``easgd`` keeps all but ``loss`` of its speed."""
    late = net.both_ways(size, 4.0) - compute
    return max(1, math.ceil(late * (1 - loss) / (loss * compute) - 1e-9))


# -- what many workers need ---------------------------------------------------------------------

GBIT = 1e9 / 8
LINK, MEMORY = 100 * GBIT, 80e9
WORKERS = (64, 256, 1024, 4096)
LOSS = 0.03


@dataclass(frozen=True)
class Network:
    """A network: its bytes on the wire, and the seconds that one worker's step computes."""

    name: str
    size: float
    compute: float
    why: str


PEAK, USED = 400e12, 0.4


def transformer(name: str, parameters: float, tokens: float, gpus: int) -> Network:
    """Return a transformer in bf16 on the wire: 6 operations a parameter and token."""
    compute = 6 * parameters * tokens / (gpus * PEAK * USED)
    why = f"{tokens / 1e3:.0f} k tokens a step on {gpus} GPU{'s' * (gpus > 1)}"
    return Network(name, 2 * parameters, compute, why)


NETWORKS = (
    Network("ResNet-50, fp32", 102.2e6, 0.10, "batch 128 on one GPU, 1,280 images/s"),
    Network("VGG16, fp32", 553e6, 0.16, "batch 64 on one GPU, 400 images/s"),
    transformer("1.3 B transformer, bf16", 1.3e9, 32_768, 1),
    transformer("8 B transformer, bf16", 8e9, 131_072, 8),
    transformer("70 B transformer, bf16", 70e9, 524_288, 64),
)


@dataclass(frozen=True)
class Need:
    """What one network needs on so many workers so that ``easgd`` keeps 97 % of its speed."""

    network: Network
    workers: int
    boxes: int
    interval: int
    few: int
    ssgd: float


def fabric(workers: int, boxes: int) -> Net:
    """Return workers and boxes with 100 Gb/s each, and the memory of a box."""
    return Net(workers, boxes, LINK, LINK, MEMORY)


def need(one: Network, workers: int) -> Need:
    """Return what a network needs: boxes at interval 1, and the interval with n/16 boxes."""
    few = max(1, workers // 16)
    boxes = boxes_needed(fabric(workers, 1), one.compute, one.size, 1, LOSS)
    interval = interval_needed(fabric(workers, few), one.compute, one.size, LOSS)
    lone = ssgd(fabric(workers, boxes), one.compute, one.size)
    return Need(one, workers, boxes, interval, few, one.compute / lone)


def needs() -> Iterator[Need]:
    """Yield every network at every number of workers."""
    for one in NETWORKS:
        for workers in WORKERS:
            yield need(one, workers)


def efficiency(one: Network, workers: int, boxes: int, interval: int) -> float:
    """Return the share of its speed without communication that ``easgd`` keeps."""
    step = easgd(fabric(workers, boxes), one.compute, one.size, interval)
    return one.compute / step

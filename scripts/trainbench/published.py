"""What others have published, and what the model says about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from trainbench import model
from trainbench.model import Net

MS, MB, GB = 1e-3, 1e6, 1e9
HCA = 6.7 * GB
"""What one memory server of ShmCaffe moved in all, 96 % of its 7 GB/s."""
DRAM = 40 * GB
"""What that server's memory is taken to move; not published."""
COMPUTE = {"Inception-v1": 23 * 3600 / (15 * 1_281_167 / 60), "VGG16": 389.8 * MS}
"""Seconds of a step on one GPU: 15 epochs of ImageNet in batches of 60 in 23 h; VGG16 as given."""
SIZES = {"Inception-v1": 53.5 * MB, "ResNet-50": 102.2 * MB, "Inception-ResNet-v2": 214 * MB,
         "VGG16": 553 * MB}  # fmt: skip
"""Bytes of the weights in Caffe; Inception-ResNet-v2 as published: 6848 MB / 2 / 16."""


@dataclass(frozen=True)
class Check:
    """One published figure beside the model's."""

    what: str
    published: float
    model: float
    note: str = ""

    @property
    def ratio(self) -> float:
        """Return model / published."""
        return self.model / self.published


def link_share(net: str) -> float:
    """Return (bytes / rate of a box) : (computation) of a published training."""
    return SIZES[net] / HCA / COMPUTE[net]


def server(workers: int) -> Net:
    """Return ShmCaffe's one memory server."""
    return Net(workers, 1, HCA, memory_rate=DRAM)


def visible(net: str, compute: float, workers: int) -> float:
    """Return the share of a ShmCaffe-A step that is not computation."""
    return model.share(model.shmcaffe(server(workers), compute, SIZES[net]), compute)


def fitted(net: str, workers: int, part: float) -> float:
    """Return the computation that explains a communication share, its writes hidden."""
    return model.compute_of(server(workers).one_way(SIZES[net]), part)


def shmcaffe() -> Iterator[Check]:
    """Yield ShmCaffe's communication shares and times: 8 and 16 workers, one server."""
    compute = COMPUTE["Inception-v1"]
    for n, part in ((8, 0.163), (16, 0.26)):
        note = "nothing fitted: computation from 23 h for 15 epochs"
        yield Check(f"ShmCaffe-A, Inception-v1, {n} workers: share of communication", part,
                    visible("Inception-v1", compute, n), note)  # fmt: skip
    for name, part, other in (("Inception-v1", 0.163, 0.26), ("ResNet-50", 0.30, 0.56)):
        found = visible(name, fitted(name, 8, part), 16)
        note = "computation fitted to 8 workers"
        yield Check(f"ShmCaffe-A, {name}, 16 workers: share of communication", other, found, note)
    compute = fitted("Inception-ResNet-v2", 4, 0.307)
    yield Check("ShmCaffe-A, Inception-ResNet-v2, 16 workers: share of communication", 0.65,
                visible("Inception-ResNet-v2", compute, 16),
                "computation fitted to ShmCaffe-H (4 groups of 4: 30.7 %)")  # fmt: skip
    step = model.shmcaffe(server(2), COMPUTE["VGG16"], SIZES["VGG16"])
    note = "a bound: its copies between GPU and host and its serial stages are not in it"
    yield Check("ShmCaffe-A, VGG16, 2 workers: ms a step", 941.8, step / MS, note)


PSLITE = {"TCP": (6954.0, 1370.0), "RoCE": (14780.0, 2777.0)}


def pslite() -> Iterator[Check]:
    """Yield ps-lite PR #151: where links are the bound, images a second go as 1 / bytes."""
    for wire, (resnet, vgg) in PSLITE.items():
        found = resnet * SIZES["ResNet-50"] / SIZES["VGG16"]
        yield Check(f"ps-lite PR #151, {wire}, VGG16, 64 GPUs: images/s", vgg, found,
                    "from its ResNet-50 by the ratio of bytes alone")  # fmt: skip


def byteps() -> Iterator[Check]:
    """Yield the limits of BytePS's formula, and the examples of 400 MB at 100 Gb/s."""
    size, rate = 400 * MB, 12.5 * GB
    for n, ring_ms, half_ms in ((8, 56.0, 40.7), (32, 62.0, 42.2)):
        yield Check(f"BytePS, {n} workers, k = 0 is the ring: ms", ring_ms,
                    model.byteps(n, 0, size, rate) / MS)  # fmt: skip
        yield Check(f"BytePS, {n} workers, k = n/2: ms", half_ms,
                    model.byteps(n, n // 2, size, rate) / MS)  # fmt: skip
        yield Check(f"BytePS, {n} workers, k = n is n servers: ms", 32.0,
                    model.byteps(n, n, size, rate) / MS)  # fmt: skip
        for s, ms in ((1, n * 32.0), (n // 2, 64.0), (n, 32.0)):
            yield Check(f"{n} workers, {s} server{'s' * (s > 1)}, both ways at once: ms", ms,
                        model.pushpull(n, s, size, rate) / MS)  # fmt: skip


def checks() -> list[Check]:
    """Return every check."""
    return [*shmcaffe(), *pslite(), *byteps()]

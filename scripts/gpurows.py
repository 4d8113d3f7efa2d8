"""Rows of ``scripts/bench_kernels.py`` for a GPU: Triton beside plain torch, and beside the bound.

Seconds between CUDA events around a few calls, ours and theirs in turns, after one turn that does
not count. Notes say how much memory each takes at most beside its inputs.

Shape legend: B images, C channels, H x W pixels, O output channels, K kernel positions.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn import functional as F
from trainbench.rows import Row

from kernels.vision import deform_conv2d, deform_sample, reference
from kernels.vision.reference import Window

GROUP, CALLS = "gpu", 5
VALUES = 25_000_000
SIZES = ((2, 256, 64, 128), (2, 128, 48, 48))
WINDOW = Window((3, 3), padding=(1, 1))
RATE = 0.3
Work = Callable[[], object]


def there() -> bool:
    """Tell whether this machine has what the rows need."""
    return torch.cuda.is_available() and find_spec("triton") is not None


def rows(repeat: int) -> Iterator[Row]:
    """Measure all rows; the convolution takes as many images at a time as ``dlp train`` does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    try:
        yield from elastic(repeat)
        for size in SIZES:
            yield from sampling(size, repeat)
        for size in SIZES:
            yield from convolution(size, repeat)
    finally:
        torch.set_num_threads(threads)


def seconds(work: Work) -> float:
    """Return the seconds of one call, the mean of a few."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(CALLS):
        work()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3 / CALLS


def turns(ours: Work, theirs: Work, repeat: int) -> tuple[list[float], list[float]]:
    """Return seconds of both, run in turns after one turn that does not count."""
    found: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeat + 1):
        for work, into in zip((ours, theirs), found, strict=True):
            one = seconds(work)
            if turn:
                into.append(one)
    return found


def peak(work: Work) -> float:
    """Return how many MiB a call takes at most beside what is there already."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def compared(name: str, peer: str, both: Sequence[Work], repeat: int, note: str = "") -> Row:
    """Return a row with the memory of both in its note; one that breaks off has no figures."""
    try:
        ours, theirs = turns(*both, repeat)
        took = "at most {:.0f} MiB beside the inputs, theirs {:.0f} MiB".format(*map(peak, both))
    except RuntimeError as error:  # the other rows are worth having
        return Row(GROUP, name, peer, missing=str(error).splitlines()[0])
    return Row(
        GROUP, name, peer, None, ours, theirs, "s", note="; ".join(filter(None, (note, took)))
    )


def differing(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> str:
    """Return in words how far results are apart, as a share of the largest value."""
    share = max(
        float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True)
    )
    return f"results differ by {share:.0e} of the largest at most"


# ---- the elastic step ----


def elastic(repeat: int) -> Iterator[Row]:
    """Measure the elastic step beside plain torch, and beside what the memory could do."""
    from kernels.vision import gpu

    y, x, other = (torch.randn(VALUES, device="cuda") for _ in range(3))

    def plain() -> None:
        d = x - y
        y.add_(d, alpha=RATE)
        x.sub_(d, alpha=RATE)

    def ours() -> None:
        gpu.elastic(y, x, RATE)

    name = f"elastic step of {VALUES // 10**6} million values"
    yield compared(name, "plain torch: three passes", (ours, plain), repeat)
    took, copies = turns(ours, lambda: other.copy_(x), repeat)
    bound = [2 * one for one in copies]
    rate = 2 * 4e-9 * VALUES / min(copies)
    yield Row(GROUP, name, "bound: 4 streams at the rate of a device copy, which has 2", None, took,
              bound, "s", note=f"the copy moves {rate:.0f} GB/s, read and written")  # fmt: skip


# ---- deformable sampling ----


@dataclass(frozen=True)
class Maps:
    """Random maps and offsets of some pixels, on the GPU."""

    x_BCHW: Tensor
    offset: Tensor

    @staticmethod
    def of(size: tuple[int, int, int, int]) -> Maps:
        """Return them for (B, C, H, W)."""
        batch, _, height, width = size
        rng = torch.Generator("cuda").manual_seed(4)
        shapes = size, (batch, 2 * WINDOW.places, height, width)
        x_BCHW, offset = (torch.randn(s, generator=rng, device="cuda") for s in shapes)
        return Maps(x_BCHW, 2 * offset)


def named(size: tuple[int, int, int, int]) -> str:
    """Return a size in words."""
    batch, channels, height, width = size
    return f"{channels} channels, {height} x {width}, batch {batch}"


def sampling(size: tuple[int, int, int, int], repeat: int) -> Iterator[Row]:
    """Measure deformable sampling and its derivative beside their definition."""
    from kernels.vision import gpu

    maps, peer = Maps.of(size), "its definition in torch"
    x_BCHW, offset = maps.x_BCHW, maps.offset
    for integer in (False, True):
        cols = gpu.deform_sample(x_BCHW, offset, WINDOW, integer)
        grad = torch.randn_like(cols)
        ahead, back = (
            [partial(getattr(of, name), *inputs, WINDOW, integer) for of in (gpu, reference)]
            for name, inputs in (
                ("deform_sample", (x_BCHW, offset)),
                ("deform_sample_backward", (grad, x_BCHW, offset)),
            )
        )
        kept = slice(0, 1 if integer else 2)  # rounded offsets have no gradient
        what = f"{'whole' if integer else 'real'} offsets, {named(size)}"
        notes = (
            differing(*([work()] for work in ahead)),
            differing(*(work()[kept] for work in back)),
        )
        for name, both, note in zip(
            ("deformable sampling", "its derivative"), (ahead, back), notes, strict=True
        ):
            yield compared(f"{name}, {what}", peer, both, repeat, note)


# ---- convolution ----


def convolution(size: tuple[int, int, int, int], repeat: int) -> Iterator[Row]:
    """Measure forward and backward of deformable convolutions beside an ordinary one.

    Both multiply in TF32. Squeezed ones take the channels to C / K first, whole offsets read one
    pixel each; offsets are given, not computed.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    maps, channels = Maps.of(size), size[1]
    few = max(1, channels // WINDOW.places)
    shapes = ((channels, channels, 3, 3), (few, channels, 1, 1), (channels, few, 3, 3))
    large, squeeze, small = (
        (torch.randn(s, device="cuda") / (s[1] * s[2] * s[3]) ** 0.5).requires_grad_()
        for s in shapes
    )
    x_BCHW, offset = maps.x_BCHW.requires_grad_(), maps.offset.requires_grad_()

    def whole(x_BCHW: Tensor, weight: Tensor) -> Tensor:
        cols_BCKHW = deform_sample(x_BCHW, offset, 3, padding=1, integer=True)
        return F.conv2d(cols_BCKHW.flatten(1, 2), weight.flatten(1)[:, :, None, None])

    def real(x_BCHW: Tensor, weight: Tensor) -> Tensor:
        return deform_conv2d(x_BCHW, offset, weight, padding=1)

    dense = trained(lambda: F.conv2d(x_BCHW, large, padding=1), (x_BCHW, large))
    for kind, way in (("real", real), ("whole", whole)):
        inputs = (x_BCHW, offset) if kind == "real" else (x_BCHW,)
        plain = trained(lambda way=way: way(x_BCHW, large), (*inputs, large))
        narrow = trained(
            lambda way=way: way(F.conv2d(x_BCHW, squeeze), small), (*inputs, squeeze, small)
        )
        for word, ours in (("", plain), ("squeezed ", narrow)):
            yield compared(
                f"{word}deformable convolution, {kind} offsets, {named(size)}, forward and "
                "backward", "ordinary convolution of all channels (cuDNN)", (ours, dense), repeat,
            )  # fmt: skip


def trained(forward: Callable[[], Tensor], inputs: Sequence[Tensor]) -> Work:
    """Return work that goes forward, and back to all inputs."""
    return lambda: torch.autograd.grad(forward().sum(), list(inputs))

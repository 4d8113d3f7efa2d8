"""Measure the vision kernels in turns with plain torch; judge the ratios of CPU time.

On a machine with a GPU the Triton kernels too, by the time they take there.

python scripts/bench_kernels.py --json docs/benchmarks/kernels.json --page
python scripts/bench_kernels.py --repeat 3 --only nms
python scripts/bench_kernels.py --only gpu --json gpu_kernels.json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT)]

import gpurows  # noqa: E402
from boxbench.report import Watch  # noqa: E402
from trainbench import report  # noqa: E402
from trainbench.rows import Row  # noqa: E402

from dlplatform.checkpoint import make_task  # noqa: E402
from dlplatform.device import changed  # noqa: E402
from dlplatform.task import Batch, Models, Task, added  # noqa: E402
from kernels.vision import (  # noqa: E402
    batched_nms,
    deform_conv2d,
    deform_sample,
    nms,
    reference,
    roi_align,
    soft_nms,
)
from kernels.vision.reference import Bins, Window  # noqa: E402
from trainers.nets.convnet import MaxPool2d  # noqa: E402

PAGE = ROOT / "docs" / "benchmarks" / "kernels.md"
BOXES, ROIS, CHANNELS = 1000, 512, 256
LAYOUTS = (
    "zoo/digits", "zoo/fcn", "zoo/segnet", "zoo/style", "zoo/nic", "zoo/faster_rcnn",
    "zoo/refine_rcnn", "zoo/resnet", "road/deformable", "human/instances",
)  # fmt: skip
Work = Callable[[], object]


def turns(ours: Work, theirs: Work, repeat: int) -> tuple[list[float], list[float]]:
    """Return CPU seconds of both, run in turns after one turn that does not count."""
    found: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeat + 1):
        for work, seconds in zip((ours, theirs), found, strict=True):
            begin = time.process_time()
            work()
            if turn:
                seconds.append(time.process_time() - begin)
    return found


def compared(
    group: str, name: str, peer: str, both: tuple[Work, Work], repeat: int,
    required: float | None = None, note: str = "",
) -> Row:  # fmt: skip
    """Return the row of a comparison."""
    ours, theirs = turns(*both, repeat)
    return Row(group, name, peer, required, ours, theirs, "s", note=note)


def boxes(rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return crowded boxes, a few on each of 60 objects as a detector gives them, with scores."""
    objects = torch.rand(60, 2, generator=rng) * 700
    corner = objects[torch.randint(0, 60, (BOXES,), generator=rng)]
    corner = corner + torch.randn(BOXES, 2, generator=rng) * 12
    size = 60 + torch.rand(BOXES, 2, generator=rng) * 60
    return torch.cat([corner, corner + size], 1), torch.rand(BOXES, generator=rng)


def suppression(repeat: int) -> Iterator[Row]:
    """Measure the three kinds of suppression on 1,000 boxes."""
    rng = torch.Generator().manual_seed(1)
    by, scores = boxes(rng)
    classes = torch.randint(0, 80, (BOXES,), generator=rng)
    plain = "plain torch, all pairs at once"
    yield compared(
        "nms", "NMS of 1,000 boxes", plain,
        (lambda: nms(by, scores, 0.5), lambda: reference.batched_nms(by, scores, None, 0.5)),
        repeat, 5.0,
    )  # fmt: skip
    yield compared(
        "nms", "NMS of 1,000 boxes in 80 classes", plain,
        (lambda: batched_nms(by, scores, classes, 0.5),
         lambda: reference.batched_nms(by, scores, classes, 0.5)),
        repeat, 5.0,
    )  # fmt: skip
    yield compared(
        "nms", "soft NMS (gaussian) of 1,000 boxes", "plain torch",
        (lambda: soft_nms(by, scores, least=0.05),
         lambda: reference.soft_nms(by, scores, 0.3, 0.5, 0.05)),
        max(1, repeat // 3),
    )  # fmt: skip


def sampled(x_BCHW: Tensor, rois: Tensor, bins: Bins) -> Tensor:
    """Align with grid_sample, then average: what plain torch has for regions inside the map."""
    height, width = x_BCHW.shape[2:]
    steps = [(torch.arange(n * bins.samples) + 0.5) / (n * bins.samples) for n in bins.size]
    found = []
    for b in range(len(x_BCHW)):
        x0, y0, x1, y1 = (rois[rois[:, 0] == b, 1:].t() * bins.scale - 0.5)[..., None]
        y = (y0 + (y1 - y0) * steps[0]) * 2 / (height - 1) - 1
        x = (x0 + (x1 - x0) * steps[1]) * 2 / (width - 1) - 1
        grid = torch.stack([x[:, None].expand(-1, y.shape[1], -1),
                            y[:, :, None].expand(-1, -1, x.shape[1])], 3)  # fmt: skip
        read = F.grid_sample(
            x_BCHW[b : b + 1], grid.flatten(0, 1)[None], padding_mode="border", align_corners=True
        )
        pooled = F.avg_pool2d(read, bins.samples)[0].unflatten(1, (-1, bins.size[0]))
        found.append(pooled.transpose(0, 1))
    return torch.cat(found)


def regions(repeat: int) -> Iterator[Row]:
    """Measure RoIAlign, forward and backward, beside two plain versions."""
    rng = torch.Generator().manual_seed(2)
    x_BCHW = torch.randn(2, CHANNELS, 50, 50, generator=rng).requires_grad_()
    corner = torch.rand(ROIS, 2, generator=rng) * 600
    size = (torch.rand(ROIS, 2, generator=rng) * 3 + 3).exp2() * 3
    number = torch.arange(ROIS)[:, None] * 2 // ROIS
    rois = torch.cat([number.float(), corner, (corner + size).clamp(max=790)], 1)
    bins = Bins((7, 7), 1 / 16, 2)
    grad = torch.randn(ROIS, CHANNELS, 7, 7, generator=rng)
    ours = lambda: roi_align(x_BCHW, rois, 7, 1 / 16, 2)  # noqa: E731
    for name, plain in (
        ("grid_sample and avg_pool2d", lambda: sampled(x_BCHW, rois, bins)),
        ("two matrix products", lambda: reference.roi_align(x_BCHW, rois, bins)),
    ):
        torch.testing.assert_close(ours(), plain(), rtol=1e-3, atol=1e-4)
        both = [lambda f=f: torch.autograd.grad(f(), x_BCHW, grad) for f in (ours, plain)]
        yield compared(
            "roi", "RoIAlign, 512 regions x 256 channels, forward and backward",
            f"plain torch: {name}", (both[0], both[1]), repeat, 2.0,
        )  # fmt: skip


def kept(work: Callable[[], Tensor]) -> float:
    """Return how many MiB are kept for backward, every piece of memory once."""
    pieces: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        pieces[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = work()
    del y
    return sum(pieces.values()) / 2**20


def deformable(repeat: int) -> Iterator[Row]:
    """Measure deformable convolution beside autograd through its definition."""
    rng = torch.Generator().manual_seed(3)
    window = Window((3, 3), padding=(1, 1))
    for channels in (128, 128 // window.places):
        shapes = ((2, channels, 48, 48), (2, 18, 48, 48), (128, channels, 3, 3))
        x_BCHW, offset, weight = inputs = [
            torch.randn(shape, generator=rng).requires_grad_() for shape in shapes
        ]

        def plain(
            x_BCHW: Tensor = x_BCHW, offset: Tensor = offset, weight: Tensor = weight
        ) -> Tensor:
            cols = reference.deform_sample(x_BCHW, offset, window, False)
            return torch.einsum("ock,bckhw->bohw", weight.flatten(2), cols)

        ours = lambda all=inputs: deform_conv2d(*all, padding=1)  # noqa: E731
        torch.testing.assert_close(ours(), plain(), rtol=1e-3, atol=1e-3)
        both = [
            lambda f=f, all=inputs: torch.autograd.grad(f().sum(), all) for f in (ours, plain)
        ]  # fmt: skip
        note = f"kept for backward: {kept(ours):.1f} MiB, plain torch {kept(plain):.1f} MiB"
        yield compared(
            "deform", f"deformable convolution of {channels} channels, forward and backward",
            "autograd through gathers", (both[0], both[1]), max(1, repeat // 3), note=note,
        )  # fmt: skip


def squeezed(repeat: int) -> Iterator[Row]:
    """Measure what squeezing to C // K channels saves: memory kept for backward, and products."""
    window, channels = Window((3, 3), padding=(1, 1)), 384
    few = channels // window.places
    x_BCHW, offset, squeeze, small, large = (
        torch.randn(shape).requires_grad_()
        for shape in (
            *((1, channels, 48, 48), (1, 18, 48, 48), (few, channels, 1, 1)),
            *((channels, few, 3, 3), (channels, channels, 3, 3)),
        )
    )

    def plain(x_BCHW: Tensor, weight: Tensor) -> Tensor:
        cols = reference.deform_sample(x_BCHW, offset, window, False)
        return torch.einsum("ock,bckhw->bohw", weight.flatten(2), cols)

    def ours(x_BCHW: Tensor, weight: Tensor) -> Tensor:
        return deform_conv2d(x_BCHW, offset, weight, padding=1)

    deep = f"{channels} channels, 48 x 48"
    for name, run in (("autograd through gathers", plain), ("C", ours)):
        less = kept(lambda run=run: run(F.conv2d(x_BCHW, squeeze), small))
        more = kept(lambda run=run: run(x_BCHW, large))
        yield Row("squeezed", f"kept for backward by squeezed deformable convolution, {deep}: "
                  f"{name}", "deformable convolution", None, [less], [more], "MiB")  # fmt: skip
    less, more = (
        deform_sample(x_BCHW[:, :some], offset, 3, padding=1).nbytes / 2**20
        for some in (few, channels)
    )
    yield Row("squeezed", f"columns of squeezed deformable convolution, {deep}",
              "deformable convolution", 9.0, [less], [more], "MiB")  # fmt: skip
    k = window.places
    ours_products = channels * 2 * k * k + channels * few + few * k * channels
    yield Row("squeezed", "products for a pixel of squeezed deformable convolution",
              "ordinary convolution", 5.0, [ours_products], [channels * k * channels], "products",
              note="at most 20 % are claimed, D09 [0169]; counted, not measured")  # fmt: skip


def pooling(repeat: int) -> Iterator[Row]:
    """Measure max pooling along the channels, alone and with its gradient."""
    rng = torch.Generator().manual_seed(5)

    def pair(shape: Sequence[int], kind: Sequence[int], backward: bool) -> tuple[Work, Work]:
        x_BCHW = torch.randn(*shape, generator=rng).requires_grad_(backward)
        ours, theirs = MaxPool2d(*kind), torch.nn.MaxPool2d(*kind)
        grad = torch.randn_like(theirs(x_BCHW))
        assert torch.equal(ours(x_BCHW), theirs(x_BCHW))
        if not backward:
            return lambda: ours(x_BCHW), lambda: theirs(x_BCHW)
        return (
            lambda: torch.autograd.grad(ours(x_BCHW), x_BCHW, grad),
            lambda: torch.autograd.grad(theirs(x_BCHW), x_BCHW, grad),
        )

    for shape, kind, what in (
        ((32, 24, 16, 16), (3, 1, 1), "3 x 3, stride 1, of Inception"),
        ((32, 32, 32, 32), (2,), "2 x 2, of VGG"),
    ):
        for backward, end in ((False, ""), (True, ", forward and backward")):
            both = pair(shape, kind, backward)
            yield compared("pool", f"max pooling, {what}{end}", "torch.nn", both, repeat)


def train(task: Task, models: Models, batch: Batch) -> None:
    """Compute the losses of a minibatch and their gradients."""
    for _, terms in task.losses(models, batch):
        added(terms).backward()  # type: ignore[no-untyped-call]


def layouts(repeat: int) -> Iterator[Row]:
    """Measure a minibatch of some tasks, forward and backward, in both layouts of memory."""
    for name in LAYOUTS:
        task = make_task({"name": name, "seed": 0})
        last, batch = task.models(), task.batch("train", 0)
        first, plain = deepcopy(last), changed(batch, Tensor.contiguous)
        for net in first.values():
            net.to(memory_format=torch.contiguous_format)
        both = partial(train, task, last, batch), partial(train, task, first, plain)
        yield compared("layout", f"a minibatch of {name}", "channels first", both, repeat)


GROUPS = {
    "nms": suppression, "roi": regions, "deform": deformable, "squeezed": squeezed,
    "pool": pooling, "layout": layouts, gpurows.GROUP: gpurows.rows,
}  # fmt: skip


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    p = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    p.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    p.add_argument("--page", action="store_true", help=f"write the table into {PAGE.name}")
    p.add_argument("--repeat", type=int, default=15, metavar="N", help="turns (default: 15)")
    p.add_argument("--only", default="", metavar="NAME,...", help=", ".join(GROUPS))
    options = p.parse_args(argv)
    options.groups = [name for name in options.only.split(",") if name] or list(GROUPS)
    if unknown := [name for name in options.groups if name not in GROUPS]:
        p.error(f"--only {','.join(unknown)}: no such group - allowed: {', '.join(GROUPS)}")
    if options.repeat < 1:
        p.error(f"--repeat {options.repeat}: no count - allowed: 1 or more")
    return options


def put_page(found: dict[str, Any]) -> None:
    """Write the tables of what was measured: of the GPU one of its own."""
    for name in ("kernels", gpurows.GROUP):
        kept = [r for r in found["rows"] if (r["group"] == gpurows.GROUP) == (name != "kernels")]
        if kept:
            report.put(PAGE, name, report.results(found | {"rows": kept}), "bench_kernels")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, write what was asked for; return the exit code."""
    options = parse(argv)
    torch.set_num_threads(1)
    if gpurows.GROUP in options.groups and not gpurows.there():
        options.groups.remove(gpurows.GROUP)
        print("gpu: left out, this machine has no GPU that torch and Triton can use",
              file=sys.stderr)  # fmt: skip
        if not options.groups:
            return 1
    watch = Watch()
    rows: list[Row] = []
    for name in options.groups:
        rows += GROUPS[name](options.repeat)
        print(f"{name}: measured", file=sys.stderr, flush=True)
    found = report.data(rows, watch, options.repeat < 3)
    if gpurows.GROUP in options.groups:
        found["cpu"] = f"{torch.cuda.get_device_name()}, {found['cpu']}"
    report.show(found)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
    if options.page:
        put_page(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())

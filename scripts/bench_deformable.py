"""Memory and multiplications of the context modules, beside figure 8 of the patent.

python scripts/bench_deformable.py --page docs/benchmarks/deformable.md

On the CPU nothing is computed: sizes are worked out on tensors without values. Where there is a GPU
its peak memory is measured, too.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch

from trainers.nets.deformable import set_offsets
from trainers.road.bench import (
    CHANNELS,
    FIGURE_8,
    MIB,
    MODULES,
    SIDES,
    Published,
    bench_network,
    count_multiplications,
    weigh,
    weigh_on_gpu,
)
from trainers.road.choices import CONTEXTS
from trainers.road.contexts import context_module

HEAD = """# Squeezed deformable convolution: memory and multiplications

The bench of figure 8 of KR 10-2023-0017679: a 1x1 convolution to 384 channels, the module without
normalisations and activations, a 1x1 convolution to 19 classes; 48 x 48 pixels stand for output
stride 16 of a crop of 768, 96 x 96 for stride 8. Where there are two numbers, the second is with
whole (rounded) offsets.

```
python scripts/bench_deformable.py --page docs/benchmarks/deformable.md
```

- **2^30 multiplications**: counted, without biases, bilinear readings and poolings. All twelve are
  those of the patent to the digit printed; a test checks it.
- **corners stored**: MiB of values for one picture if a sampler stores the four corners of every
  bilinear reading, as the patent counts: kept for the backward pass, and there at the same time in
  inference. In training the order is the patent's, and a test keeps it: the deformable convolution
  needs most; DSPP lies between SPP and ASPP at stride 16, above ASPP at stride 8, and below it with
  whole offsets.
- **ours**: the same with the sampler of `kernels/vision`, which stores no corner, and in the
  backward pass works out positions and weights again.
- **patent**: MiB on a TITAN RTX with PyTorch 1.6; the batch is not said (about 8, by the
  increments), and the allocator's own share is in it. Only order and ratios compare.
"""
COLUMNS = (
    "module", "2^30 multiplications", "patent", "training, corners stored", "ours",
    "inference, corners stored", "ours", "patent: training", "patent: inference",
)  # fmt: skip
GPU = ("training on the GPU, 8 pictures", "inference on the GPU, 8 pictures")


def main() -> None:
    """Print the tables, and write the page if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--page", type=Path, help="write the page to this file")
    given = parser.parse_args()
    gpu = torch.cuda.is_available()
    blocks = [HEAD]
    for stride, side in SIDES.items():
        blocks.append(f"## Output stride {stride}: {side} x {side} pixels\n")
        blocks.append("\n".join(table(stride, side, gpu)) + "\n")
    blocks.append(closing(gpu))
    page = "\n".join(blocks)
    print(page)
    if given.page:
        given.page.write_text(page)


def table(stride: int, side: int, gpu: bool) -> Iterator[str]:
    """Yield the lines of one stride's table."""
    columns = [*COLUMNS, *(GPU if gpu else ())]
    yield "| " + " | ".join(columns) + " |"
    yield "| --- |" + " ---: |" * (len(columns) - 1)
    for name in MODULES:
        cells = row(name, stride, side) + (on_gpu(name, stride, side) if gpu else [])
        yield f"| {CONTEXTS[name]} | " + " | ".join(cells) + " |"


def row(name: str, stride: int, side: int) -> list[str]:
    """Return the cells of one module."""
    count = count_multiplications(context_module(name, CHANNELS, stride), side, side)
    printed: Published = FIGURE_8[stride, name]
    net = bench_network(name, stride)
    real = [weigh(net, side, fused) for fused in (False, True)]
    whole = (
        [weigh(net, side, fused) for fused in (False, True)] if set_offsets(net, "tuned") else []
    )
    phases = [
        pair(getattr(one, phase), [getattr(other, phase) for other in whole[n : n + 1]])
        for phase in ("training", "inference")
        for n, one in enumerate(real)
    ]
    inference = f"{printed.inference}" + (f" ({printed.integer})" if printed.integer else "")
    counted = [f"{count / 2**30:.1f}", f"{printed.multiplications:.1f}"]
    return [*counted, *phases, str(printed.train), inference]


def on_gpu(name: str, stride: int, side: int) -> list[str]:
    """Return the measured peaks of one module."""
    net = bench_network(name, stride)
    real = weigh_on_gpu(net, side)
    whole = [weigh_on_gpu(net, side)] if set_offsets(net, "tuned") else []
    return [
        pair(getattr(real, phase), [getattr(one, phase) for one in whole])
        for phase in ("training", "inference")
    ]


def pair(real: int, whole: list[int]) -> str:
    """Return MiB, and those with whole offsets in brackets."""
    return f"{real / MIB:.1f}" + "".join(f" ({one / MIB:.1f})" for one in whole)


def closing(gpu: bool) -> str:
    """Return what was measured where."""
    if gpu:
        return f"Measured on {torch.cuda.get_device_name()}, torch {torch.__version__}.\n"
    return (
        f"torch {torch.__version__}; sizes only, no GPU was there: with one the script measures "
        "its peak memory, too.\n"
    )


if __name__ == "__main__":
    main()

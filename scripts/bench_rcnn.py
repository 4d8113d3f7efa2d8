"""Time the stages of R-CNN, Fast R-CNN and Faster R-CNN on the same pictures.

python scripts/bench_rcnn.py --page docs/benchmarks/rcnn.md

The networks are as they are before training, which takes as long; all three have the same layers
of VGG-11. The first two are given the same proposals. Shape legend: B batch, C channels, H, W.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from launch.bench import load, machine
from trainers.blocks.pixels import shown
from trainers.blocks.selective import selective_search
from trainers.blocks.twostage import NETS, TwoStage, two_stages
from trainers.nets.crops import CropNet
from trainers.zoo.fast_rcnn import FastRCNN
from trainers.zoo.faster_rcnn import FasterRCNN
from trainers.zoo.rcnn import RCNN

STAGES = ("proposals", "convolutions", "regions", "answers")
WARPED = 64
"""Pixels of R-CNN's regions."""
HEAD = """# The line from R-CNN to Faster R-CNN, stage by stage

Milliseconds that one core works for a picture of 128 x 128 pixels, the median over {pictures} drawn
scenes, and 10^6 multiplications of the networks; what other processes do meanwhile costs little of
it. The three see with the same layers of VGG-11, a quarter as wide as published; R-CNN and Fast
R-CNN are given the same boxes of selective search, {boxes:.0f} on average.

```
python scripts/bench_rcnn.py --page docs/benchmarks/rcnn.md
```

- **R-CNN** runs its network once for every proposal.
- **Fast R-CNN** runs it once for the picture and pools what it says of each region; what is left to
  wait for is selective search.
- **Faster R-CNN** proposes with three more convolutions on the same map.

{cpu}, {cores} cores, Linux {kernel}, {date}; torch {torch}; load average {begin} before,
{end} after.
"""
Value = TypeVar("Value")


class Watch:
    """Adds up the seconds of named stages, and the multiplications of all."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)

    def time(self, stage: str, work: Callable[[], Value]) -> Value:
        """Return what a piece of work returns; its time counts for a stage."""
        begin = time.process_time()
        made = work()
        self.seconds[stage] += time.process_time() - begin
        return made


def search(watch: Watch, x_1CHW: Tensor) -> list[Tensor]:
    """Return the proposals of selective search."""
    image_HW3 = shown(x_1CHW)[0].numpy()
    found = watch.time("proposals", lambda: selective_search(image_HW3, "fast", 300))
    return [torch.from_numpy(found)]


def rcnn(task: RCNN, models: dict[str, Any], x_1CHW: Tensor) -> Watch:
    """Time R-CNN on one picture."""
    watch, net = Watch(), cast("CropNet", models["net"])
    boxes = search(watch, x_1CHW)
    crops = watch.time("regions", lambda: task.cut(x_1CHW, boxes))
    seen = watch.time("convolutions", lambda: net.seen(crops))
    watch.time("answers", lambda: task.answered(models, seen, boxes[0], x_1CHW))
    return watch


def two(task: TwoStage, models: dict[str, Any], x_1CHW: Tensor) -> Watch:
    """Time Fast or Faster R-CNN on one picture."""
    watch, net = Watch(), two_stages(models)
    map_BCHW = watch.time("convolutions", lambda: net.trunk(x_1CHW))
    size = (x_1CHW.shape[2], x_1CHW.shape[3])
    if net.rpn is None:
        boxes = search(watch, x_1CHW)
    else:
        rpn = net.rpn
        boxes = watch.time(
            "proposals", lambda: rpn.propose(rpn(map_BCHW), rpn.boxes(map_BCHW), size)
        )
    looks = watch.time("regions", lambda: net.passes(map_BCHW, boxes, size))
    watch.time("answers", lambda: task.decided(looks, size))
    return watch


def multiplications(work: Callable[..., Watch], *given: Any) -> float:
    """Return the multiplications of the networks in a piece of work."""
    counter = FlopCounterMode(display=False)
    with counter:
        work(*given)
    return counter.get_total_flops() / 2


def contestants() -> dict[str, tuple[Callable[..., Watch], Any]]:
    """Return the three detectors by name: what times them, and the task."""
    return {
        "R-CNN": (rcnn, RCNN(width=NETS["tiny"][0][1], warped=WARPED, context=4.0, least=0.5)),
        "Fast R-CNN": (two, FastRCNN(least=0.5)),
        "Faster R-CNN": (two, FasterRCNN(least=0.5)),
    }


@torch.no_grad()
def measure(pictures: int) -> Iterator[tuple[str, dict[str, float], float]]:
    """Yield each detector with its median seconds of each stage, and its multiplications."""
    for name, (run, task) in contestants().items():
        torch.manual_seed(0)
        models = task.models()
        for model in models.values():
            model.eval()
        examples = [one for x_BCHW, *_ in task.batches("test") for one in torch.split(x_BCHW, 1)]
        run(task, models, examples[0])  # the first is slower
        seen = [run(task, models, x_1CHW).seconds for x_1CHW in examples[:pictures]]
        medians = {
            stage: float(torch.tensor([one[stage] for one in seen]).median()) for stage in STAGES
        }
        counted = [multiplications(run, task, models, x_1CHW) for x_1CHW in examples[:5]]
        yield name, medians, sum(counted) / len(counted)


def table(rows: list[tuple[str, dict[str, float], float]]) -> Iterator[str]:
    """Yield the lines of the table."""
    yield f"| | {' | '.join(STAGES)} | together | times R-CNN's | 10^6 multiplications |"
    yield "| --- |" + " --- |" * (len(STAGES) + 3)
    slowest = sum(rows[0][1].values())
    for name, seconds, count in rows:
        total = sum(seconds.values())
        cells = [f"{1000 * seconds[stage]:.1f}" for stage in STAGES]
        cells += [f"{1000 * total:.1f}", f"{slowest / total:.1f}", f"{count / 1e6:.0f}"]
        yield f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    """Print the table, and write the page if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=20, help="scenes to look at")
    parser.add_argument("--page", type=Path, help="write the page to this file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    begin = load()
    rows = list(measure(given.pictures))
    x_BCHW, _ = next(iter(FastRCNN().batches("test")))
    boxes = [len(one) for one in FastRCNN().candidates({}, x_BCHW)]
    head = HEAD.format(
        pictures=given.pictures, boxes=sum(boxes) / len(boxes), torch=torch.__version__,
        begin=begin, end=load(), **machine(),
    )  # fmt: skip
    page = head + "\n" + "\n".join(table(rows)) + "\n"
    print(page)
    if given.page:
        given.page.write_text(page)


if __name__ == "__main__":
    main()

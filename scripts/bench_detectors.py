"""Time detectors from the picture to what is found: torch beside ONNX Runtime, on this machine.

python scripts/bench_detectors.py --page docs/benchmarks/detectors.md
python scripts/bench_detectors.py face/detection --sizes tiny,19-slim --side 320 --seconds 2
python scripts/bench_detectors.py face/detection --attention both --device cuda

Networks are as they are before training, which takes as long.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dlplatform.errors import PlatformError, UsageError
from dlplatform.task import Models, find_task
from launch.bench import load, machine
from trainers.blocks.anchorfree import BACKBONES, AnchorFree
from trainers.blocks.detector import Detector
from trainers.blocks.exported import Finding, Runtime, write
from trainers.blocks.pixels import normalised
from trainers.blocks.searched import Searched
from trainers.nets.convnet import parameter_count
from trainers.synth.instance_views import fitted

LINE = ("rcnn", "fast_rcnn", "faster_rcnn", "mask_rcnn", "refine_rcnn")
NINE = (
    *(f"zoo/{name}" for name in LINE),
    *("human/instances", "human/pose", "human/state", "face/detection"),
)
SIZED = "face/detection,human/instances"
OBJECTS, PLACES = 10, 60
"""Found in the picture, and places that are surer than the limit before suppression."""
PAGE = """# Detectors: torch and ONNX Runtime

Milliseconds for one picture, from its pixels to boxes that no better one covers, with the masks,
joints and states of {objects} objects: best and median of what is measured in turns; of one thread
the time that it works, of several the time that passes. Frames a second are those of the fastest
median. The file of ONNX Runtime is what `dlp export` writes, and answers the same
([what is in it](../manual_training.md#other-runtimes)). R-CNN and Fast R-CNN are given their boxes
here; what selective search costs is on [a page of its own](rcnn.md). Networks are as they are
before training, and see a picture in which many places are sure.

```
python scripts/bench_detectors.py --page docs/benchmarks/detectors.md
```

{machine}; torch {torch}, ONNX Runtime {onnx}; load average {begin} before, {end} after (the
benchmark's own processes included). Above 2.5 before, figures of several threads are none to
compare with.
"""
TABLES = {
    "default": "As they are set by default",
    "sized": "Every backbone: VoVNetV2 with a pyramid of {width} channels and {levels} levels",
}


class Contestant(NamedTuple):
    """Who finds what is in a picture, and how that is timed."""

    work: Callable[[], object]
    threads: int = 1
    clock: Callable[[], float] = time.perf_counter


def busy(task: Detector, models: Models, x_1CHW: Tensor) -> None:
    """Let places be as sure as those of a picture with some objects, so that heads have work."""
    if isinstance(task, AnchorFree):
        with torch.no_grad():
            net, _, dense = task.dense(models, x_1CHW)
            last = dense.logits_BNK.flatten().topk(PLACES).values[-1]
            net.head.logits.bias += float(torch.tensor(0.06).logit() - last)


def given(task: Detector) -> tuple[Tensor, ...]:
    """Return what a detector is asked: a test picture, and the boxes in it if it wants some."""
    image_HW3 = task.examples("test")[0][0]
    picture_HW3 = torch.from_numpy(fitted(image_HW3, task.side).image(image_HW3))
    if not isinstance(task, Searched):
        return (picture_HW3,)
    return picture_HW3, task.candidates({}, normalised(picture_HW3[None]))[0]


def contestants(
    finding: Finding, asked: tuple[Tensor, ...], path: Path, options: argparse.Namespace
) -> dict[str, Contestant]:
    """Return who finds what is in the picture, by name."""
    export = finding.export()
    write(export, path)
    arrays = [value.numpy() for value in asked]
    rows: dict[str, Contestant] = {}
    for threads in options.threads:
        runtime = Runtime(path, threads)
        # What one thread works, other processes cannot lengthen much.
        how = threads, time.process_time if threads == 1 else time.perf_counter
        rows[f"ONNX Runtime, {threads}"] = Contestant(lambda r=runtime: r.found(*arrays), *how)
        if options.device == "cpu":
            rows[f"torch, {threads}"] = Contestant(lambda: finding.found(*asked), *how)
    if options.device != "cpu":
        net, there = finding.to(options.device), [value.to(options.device) for value in asked]

        def on_device() -> None:
            net.found(*there)
            torch.cuda.synchronize()

        rows[f"torch, {options.device}"] = Contestant(on_device)
    return dict(sorted(rows.items(), key=lambda row: (row[0].startswith("ONNX"), row[0])))


@torch.inference_mode()
def turns(rows: dict[str, Contestant], seconds: float) -> dict[str, list[float]]:
    """Return [best, median] milliseconds of each, measured in turns."""
    times: dict[str, list[float]] = {name: [] for name in rows}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or min(map(len, times.values())) < 4:
        for name, one in rows.items():
            torch.set_num_threads(one.threads)
            begin = one.clock()
            one.work()
            times[name].append(1000 * (one.clock() - begin))
    # The first turn warms up.
    return {name: [min(every[1:]), median(every[1:])] for name, every in times.items()}


def measured(task: Detector, label: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return what a detector costs."""
    torch.manual_seed(0)
    models: Models = {name: net.eval() for name, net in task.models().items()}
    asked = given(task)
    busy(task, models, normalised(asked[0][None]))
    finding = Finding(task, models)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        objects = len(finding.found(*asked).labels_N)
    with tempfile.TemporaryDirectory() as folder:
        rows = contestants(finding, asked, Path(folder) / "all.onnx", options)
        milliseconds = turns(rows, options.seconds)
    return {
        "detector": label,
        "size": getattr(task, "backbone", getattr(task, "net", "VGG-11 / 8")),
        "attention": "on" if getattr(task, "attention", False) else "-",
        "side": task.side,
        "objects": objects,
        "values": sum(map(parameter_count, models.values())) / 1e6,
        "products": counter.get_total_flops() / 2e9,
        "milliseconds": milliseconds,
    }


def wanted(options: argparse.Namespace) -> Iterator[tuple[str, str, Detector]]:
    """Yield (table, name, task) of what is to be measured."""
    for name in options.tasks or NINE:
        cls = find_task(name)
        if not issubclass(cls, Detector):
            raise UsageError(f"{name} is no detector - allowed: {', '.join(NINE)} - do: choose")
        if not options.sized_only:
            yield "default", name, cls(most=OBJECTS)
    attended = {"on": (True,), "off": (False,), "both": (True, False)}[options.attention]
    for name in [name for name in options.sized if name in (options.tasks or NINE)]:
        cls = find_task(name)
        if not issubclass(cls, AnchorFree):
            raise UsageError(f"{name} has no sizes - allowed: {SIZED} - do: choose")
        for size in options.sizes:
            for attention in attended:
                shape = {"side": options.side, "width": options.width, "levels": options.levels}
                more = {"norm": "frozen", "attention": attention, "most": OBJECTS}
                yield "sized", name, cls(backbone=size, **shape, **more)


def line(row: dict[str, Any]) -> str:
    """Return a row of a table."""
    times = row["milliseconds"]
    cells = [row["detector"], row["size"], row["attention"], row["side"]]
    cells += [f"{row['values']:.2f}", f"{row['products']:.2f}"]
    cells += [f"{best:.1f}, {middle:.1f}" for best, middle in times.values()]
    fastest = min(middle for _, middle in times.values())
    return "| " + " | ".join(map(str, [*cells, ratio(times), f"{1000 / fastest:.0f}"])) + " |"


def ratio(times: dict[str, list[float]]) -> str:
    """Return how many times as fast ONNX Runtime is on one thread, by the best turns."""
    both = times.get("torch, 1"), times.get("ONNX Runtime, 1")
    return f"{both[0][0] / both[1][0]:.2f}" if both[0] and both[1] else "-"


def head(row: dict[str, Any]) -> str:
    """Return the first two lines of a table like a row."""
    names = ["detector", "backbone", "attention", "side", "10^6 values", "10^9 products"]
    names += [f"{name}{' thread(s)' * name[-1].isdigit()}" for name in row["milliseconds"]]
    names += ["torch / ONNX Runtime", "frames/s"]
    return f"| {' | '.join(names)} |\n|{' --- |' * len(names)}"


def page(tables: dict[str, list[dict[str, Any]]], options: argparse.Namespace, begin: float) -> str:
    """Return the page of all tables."""
    import onnxruntime

    of = machine()
    name = of["cpu"] if options.device == "cpu" else torch.cuda.get_device_name()
    text = PAGE.format(
        objects=OBJECTS, torch=torch.__version__, onnx=onnxruntime.__version__, begin=begin,
        machine=f"{name}, {of['cores']} cores, Linux {of['kernel']}, {of['date']}", end=load(),
    )  # fmt: skip
    for key, rows in tables.items():
        if rows:
            title = TABLES[key].format(width=options.width, levels=options.levels)
            text += "\n".join([f"\n## {title}\n", head(rows[0]), *map(line, rows)]) + "\n"
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables, and write them as a page and as JSON if asked to."""
    words = lambda text: [word for word in text.split(",") if word]  # noqa: E731
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*", help="detectors (default: all nine)")
    parser.add_argument("--sizes", type=words, default=list(BACKBONES), help="of VoVNetV2")
    parser.add_argument("--sized", type=words, default=words(SIZED), help="those in every size")
    parser.add_argument("--sized-only", action="store_true", help="leave the defaults out")
    parser.add_argument("--side", type=int, default=320, help="pixels of pictures in every size")
    parser.add_argument("--width", type=int, default=128, help="channels of the pyramid")
    parser.add_argument("--levels", type=int, default=5)
    parser.add_argument("--attention", choices=("on", "off", "both"), default="on")
    parser.add_argument("--threads", type=lambda t: [int(n) for n in words(t)], default=[1, 2])
    parser.add_argument("--seconds", type=float, default=6.0, help="for each row")
    parser.add_argument("--device", default="cpu", help="of torch: cpu or cuda")
    parser.add_argument("--page", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    tables: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
    begin = load()
    try:
        for table, name, task in wanted(options):
            row = measured(task, name, options)
            if not tables[table]:
                print(head(row), flush=True)
            tables[table].append(row)
            print(line(row), flush=True)
            if options.page:  # a long run that ends early leaves what it measured
                options.page.write_text(page(tables, options, begin))
    except PlatformError as error:
        raise SystemExit(str(error)) from error
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), **tables}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

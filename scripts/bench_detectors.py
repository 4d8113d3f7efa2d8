"""Measure detectors of every size: values, multiply-adds, and pictures a second on this machine.

python scripts/bench_detectors.py face/detection
python scripts/bench_detectors.py human/instances --sizes tiny,19-slim --side 320 --seconds 2
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch.utils.flop_counter import FlopCounterMode

from dlplatform.errors import UsageError
from dlplatform.task import find_task
from launch.bench import machine
from trainers.blocks.anchorfree import BACKBONES, AnchorFree
from trainers.nets.convnet import parameter_count

ROW = "{size:<12}{attention:<11}{values:>9}{madds:>9}{milliseconds:>9}{rate:>8}"
HEAD = {
    **{"size": "backbone", "attention": "attention", "values": "values M", "madds": "G madds"},
    **{"milliseconds": "ms", "rate": "fps"},
}


@torch.inference_mode()
def measured(task: AnchorFree, seconds: float, device: str) -> dict[str, Any]:
    """Return what a detector costs, from the picture to what is found, one picture at a time."""
    models = {name: net.eval().to(device) for name, net in task.models().items()}
    x_BCHW = torch.rand(1, 3, task.side, task.side, device=device)
    with FlopCounterMode(display=False) as counter:
        task.found(models, x_BCHW)
    times: list[float] = []
    while sum(times) < seconds or len(times) < 3:
        begin = time.perf_counter()
        task.found(models, x_BCHW)
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    middle = sorted(times)[len(times) // 2]
    return {
        "size": task.backbone,
        "attention": "on" if task.attention else "off",
        "values": round(sum(map(parameter_count, models.values())) / 1e6, 3),
        "madds": round(counter.get_total_flops() / 2e9, 3),
        "milliseconds": round(middle * 1000, 1),
        "rate": round(1 / middle, 1),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, and write it as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", nargs="?", default="face/detection")
    parser.add_argument("--sizes", default=",".join(BACKBONES))
    parser.add_argument("--side", type=int, default=320)
    parser.add_argument("--width", type=int, default=128, help="channels of the pyramid")
    parser.add_argument("--levels", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each row")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(argv)
    cls, rows = find_task(given.task), []
    if not issubclass(cls, AnchorFree):
        raise SystemExit(f"{given.task} is no anchor-free detector - do: face/detection")
    where = torch.cuda.get_device_name() if given.device != "cpu" else machine()["cpu"]
    print(f"{given.task}, {given.side} x {given.side}, {given.device}: {where}")
    print(ROW.format(**HEAD))
    for size in given.sizes.split(","):
        for attention in (True, False):
            try:
                task = cls(
                    backbone=size, side=given.side, width=given.width, levels=given.levels,
                    attention=attention, norm="frozen",
                )  # fmt: skip
            except UsageError as error:
                raise SystemExit(str(error)) from error
            rows.append(measured(task, given.seconds, given.device))
            print(ROW.format(**rows[-1]), flush=True)
    if given.json:
        given.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

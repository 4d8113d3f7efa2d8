"""Context modules beside each other, in the layout of figures 10 to 12 of the patent, and figure 9.

python scripts/study_modules.py --out FOLDER                       # all ten modules, tiny host
python scripts/study_modules.py --out FOLDER --modules conv,dspp --minibatches 40 --tune 10
python scripts/study_modules.py --out FOLDER --host espnet --data CITYSCAPES --crop 768

Each module is trained alone on this machine, judged with real and with whole offsets, and tuned
with whole ones. FOLDER gets the tables as modules.md, a picture with a row of class maps for each
module, and the cells of feature maps by t-SNE.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dlplatform.checkpoint import Checkpoint, weights_of
from dlplatform.seeds import derive
from dlplatform.task import Models
from trainers.blocks.pixels import class_map, stacked
from trainers.data.scenes import some
from trainers.nets.deformable import deformables, set_offsets
from trainers.pictures.sheet import Heading, Row, Tile, draw_sheet
from trainers.road.cells import cells, coarse_maps, draw_cells, embed
from trainers.road.choices import CONTEXTS
from trainers.road.deformable import DeformableRoad

KINDS = {"conv": "-", "df": "Layer", "sdf": "Layer"}
SHOWN, LOOKED_AT = 5, 40


@dataclass(frozen=True)
class Result:
    """What a module reached on the test pictures, in mIoU."""

    module: str
    real: float
    whole: float | None = None
    """With offsets rounded; None for a module without any."""
    tuned: float | None = None
    longer: float | None = None
    """After as many further minibatches with real offsets: what training alone would gain."""
    layers: int = 0
    """Squeezed deformable convolutions in it."""


def main() -> None:
    """Train, judge, tune and write it all down."""
    given = arguments()
    given.out.mkdir(parents=True, exist_ok=True)
    settings = {
        name: value
        for name in ("host", "data", "crop", "seed", "minibatches", "batch_size")
        if (value := getattr(given, name)) is not None
    }
    results, nets = [], {}
    for module in given.modules.split(","):
        task = DeformableRoad(module=module, **settings)
        result, nets[module] = study(task, given.out / "runs" / module, given.tune)
        results.append(result)
        print(table([result]).splitlines()[-1], flush=True)
    (given.out / "modules.md").write_text(page(results, given))
    draw(task, nets).save(given.out / "modules.png")
    show_cells(task, nets).save(given.out / "cells.png")


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of what is found")
    parser.add_argument("--modules", default=",".join(CONTEXTS), help="with commas")
    parser.add_argument("--tune", type=int, default=60, help="minibatches with whole offsets")
    parser.add_argument("--host", help="tiny, espnet or deeplab")
    parser.add_argument("--data", help="folder of Cityscapes or CamVid")
    for name in ("crop", "seed", "minibatches", "batch-size"):
        parser.add_argument(f"--{name}", type=int)
    given = parser.parse_args()
    for module in given.modules.split(","):
        if module not in CONTEXTS:
            parser.error(f"--modules {module} - allowed: {', '.join(CONTEXTS)} - do: correct it")
    return given


def study(task: DeformableRoad, folder: Path, tune: int) -> tuple[Result, nn.Module]:
    """Train a module, then judge it with real, with whole and with tuned offsets."""
    models = trained(task, fresh(task))
    result = Result(task.module, reached(task, models))
    layers = len(list(deformables(models["net"])))
    if not layers:
        return result, models["net"]
    Checkpoint(position=task.minibatches, weights=weights_of(models)).save(folder)
    set_offsets(models["net"], "integer")
    whole = reached(task, models)
    set_offsets(models["net"], "real")
    more = {"start": str(folder), "minibatches": tune, "lr": task.lr / 5, "seed": task.seed}
    after = [
        reached(again, trained(again, fresh(again)))
        for offsets in ("tuned", "real")
        for again in [replace(task, offsets=offsets, **more)]
    ]
    found = replace(result, whole=whole, tuned=after[0], longer=after[1], layers=layers)
    return found, models["net"]


def fresh(task: DeformableRoad) -> Models:
    """Build the networks as a run of the task would."""
    torch.manual_seed(derive(task.seed, "init"))
    return task.models()


def trained(task: DeformableRoad, models: Models) -> Models:
    """Train a task's networks here, in one process."""
    (parameters,) = task.groups(models).values()
    optimizer = task.optimizer("main", list(parameters))
    models["net"].train()
    for number in range(task.minibatches):
        optimizer.param_groups[0]["lr"] = task.lr * task.rate(number / task.minibatches)
        optimizer.zero_grad()
        loss: Any = task.loss(models, task.batch("train", number))
        (sum(loss.values()) if isinstance(loss, dict) else loss).backward()
        optimizer.step()
    return models


def reached(task: DeformableRoad, models: Models) -> float:
    """Return the mIoU on the test pictures."""
    return task.tally(models, task.batches("test")).scores()["mIoU"]


def table(results: Iterable[Result]) -> str:
    """Return the table of figures 10 to 12: type, name, applied position, mIoU."""
    lines = ["| type | name | applied position | mIoU % |", "| --- | --- | --- | ---: |"]
    for one in results:
        kind = "Extension" if "_" in one.module else KINDS.get(one.module, "Module")
        place = "output stride 8, 16" if kind == "Extension" else "output stride 16"
        name = "Original (convolution)" if one.module == "conv" else CONTEXTS[one.module]
        lines.append(f"| {kind} | {name} | {place} | {100 * one.real:.1f} |")
    return "\n".join(lines)


def rounding(results: Iterable[Result]) -> str:
    """Return the table of figure 9: mIoU with real, whole and tuned offsets."""
    lines = [
        "| name | layers | real | whole | tuned | lost | won back | real, trained on |",
        "| --- |" + " ---: |" * 7,
    ]
    for one in results:
        if one.whole is not None and one.tuned is not None and one.longer is not None:
            values = (one.real, one.whole, one.tuned, one.real - one.whole, one.tuned - one.whole)
            cells = " | ".join(f"{100 * value:.1f}" for value in (*values, one.longer))
            lines.append(f"| {CONTEXTS[one.module]} | {one.layers} | {cells} |")
    return "\n".join(lines)


def page(results: list[Result], given: argparse.Namespace) -> str:
    """Return both tables with what they are of."""
    what = given.data or "drawn road scenes, which say that modules learn, not which is better"
    return (
        f"# Context modules in the host {given.host or 'tiny'}\n\nData: {what}.\n\n"
        f"{table(results)}\n\n## Whole offsets, and {given.tune} minibatches of tuning\n\n"
        f"{rounding(results)}\n\n"
        "- One run of each module, test pictures; another seed moves them by a point or so. All\n"
        "  of it: `python scripts/study_modules.py --out FOLDER`.\n\n"
        "![Class maps of each module](modules.png)\n\n"
        "![Where features come from](cells.png)\n"
    )


def draw(task: DeformableRoad, nets: dict[str, nn.Module]) -> Any:
    """Draw test pictures with their truth and the class map of each module below."""
    test = task.scenes("test")
    shown = some(test, SHOWN)
    rows = [
        Row([Tile(image) for image, _ in shown], "picture"),
        Row([Tile(test.kinds.paint(labels)) for _, labels in shown], "truth"),
    ]
    for module, net in nets.items():
        maps = [class_map(net, stacked([scene])[0])[0].numpy() for scene in shown]
        right = [
            f"{np.mean((answer == truth)[truth != 255]):.1%} right"
            for answer, (_, truth) in zip(maps, shown, strict=True)
        ]
        tiles = [Tile(test.kinds.paint(m), [r]) for m, r in zip(maps, right, strict=True)]
        rows.append(Row(tiles, module))
    return draw_sheet(Heading("Context modules", "test pictures, not chosen"), rows)


def show_cells(task: DeformableRoad, nets: dict[str, nn.Module]) -> Any:
    """Draw where in the picture the features of the last module's cells come from."""
    module, net = list(nets.items())[-1]
    x_B3HW, _ = stacked(some(task.scenes("test"), LOOKED_AT))
    found = cells(coarse_maps(net, x_B3HW))
    detail = f"t-SNE of 3 x 3 cells of {len(x_B3HW)} pictures, {CONTEXTS[module]}"
    return draw_cells(found, embed(found.features_NC), detail)


if __name__ == "__main__":
    main()

"""Train shallow and deep nets with and without shortcuts; write the table and the curves.

He et al. (2016), figure 1 and 4, in miniature: deep plain nets have the higher training loss.

python scripts/study_depth.py                       # 4 nets, results into docs/results
python scripts/study_depth.py --minibatches 20 --out /tmp/look
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from trainers.nets.convnet import parameter_count
from trainers.nets.resnet import residual_sizes
from trainers.zoo.resnet import ResnetPictures

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
NETS = {
    "plain": ("none", "tab:red"),
    "ResNet": ("pad", "tab:blue"),
}
SMOOTH = 25
"""Minibatches that a point of a curve is the mean of."""
PAGE = """# Depth, with and without shortcuts

He et al. (2016) found that stacking more layers makes a plain net worse, also on the pictures it
trains on, and that shortcuts mend this. Here in miniature: nets for 32x32 pictures with a quarter
of the channels, {minibatches} minibatches of {batch} shapes with textures, SGD with the same rate,
seed {seed}. That is only the beginning of a training: read the order of the curves, not where they
end. Plain net and ResNet of a depth have the same parameters and start alike; the ResNet's
shortcuts have none. The training loss is the mean over the last {smooth} minibatches.

| net | layers | parameters | training loss | test accuracy | size of the residuals |
| --- | ---: | ---: | ---: | ---: | ---: |
{rows}

![Training loss over minibatches](depth.png)

The last column is the mean of |F(x)| over the mean of |x|, from the first block to the last: a
block of a trained ResNet changes what it gets by so much.

Written by `python scripts/study_depth.py`; a picture of a mechanism, not of the paper's figures.
"""


@dataclass
class Curve:
    """One net's training."""

    name: str
    depth: int
    colour: str
    losses: list[float] = field(default_factory=list)
    row: str = ""


def trained(task: ResnetPictures, curve: Curve) -> Curve:
    """Train a net and return its losses and its row of the table."""
    torch.manual_seed(task.seed)
    models = task.models()
    net = models["net"]
    optimizer = task.optimizer("main", net.parameters())
    for number in range(task.minibatches):
        optimizer.param_groups[0]["lr"] = task.lr * task.rate(number / task.minibatches)
        optimizer.zero_grad()
        loss = task.loss(models, task.batch("train", number))
        assert isinstance(loss, torch.Tensor)
        loss.backward()
        optimizer.step()
        curve.losses.append(float(loss))
    accuracy = task.score(models, task.batches("test"))["accuracy"]
    sizes = list(residual_sizes(net, task.batch("val", 0)[0]).values())
    shown = f"{sizes[0]:.2f} ... {sizes[-1]:.2f}" if sizes else "no shortcuts"
    last = statistics.fmean(curve.losses[-SMOOTH:])
    curve.row = (
        f"| {curve.name} | {curve.depth} | {parameter_count(net):,} | {last:.3f} | {accuracy:.3f} "
        f"| {shown} |"
    )
    return curve


def draw(curves: list[Curve], path: Path) -> None:
    """Draw the training losses: shallow nets dashed, deep ones solid."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    shallow = min(curve.depth for curve in curves)
    for curve in curves:
        size = min(SMOOTH, len(curve.losses))
        sums = torch.tensor(curve.losses).unfold(0, size, 1).mean(1)
        style = "--" if curve.depth == shallow else "-"
        label = f"{curve.name}, {curve.depth} layers"
        places = range(size, len(curve.losses) + 1)
        axes.plot(places, sums.tolist(), style, color=curve.colour, label=label)
    axes.set(xlabel="minibatches", ylabel="training loss")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Train all nets and write the page."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--minibatches", type=int, default=120)
    words.add_argument("--depths", type=int, nargs="+", default=[8, 32])
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--out", type=Path, default=RESULTS)
    asked = words.parse_args()
    torch.set_num_threads(1)
    curves = []
    for depth in asked.depths:
        for name, (shortcut, colour) in NETS.items():
            task = ResnetPictures(
                seed=asked.seed, depth=depth, width=0.25, shortcut=shortcut, augment=False,
                minibatches=asked.minibatches,
            )  # fmt: skip
            start = time.process_time()
            curves.append(trained(task, Curve(name, depth, colour)))
            print(curves[-1].row, f"{time.process_time() - start:.0f} s", flush=True)
    asked.out.mkdir(parents=True, exist_ok=True)
    draw(curves, asked.out / "depth.png")
    page = PAGE.format(
        minibatches=asked.minibatches, batch=task.batch_size, seed=asked.seed, smooth=SMOOTH,
        rows="\n".join(curve.row for curve in curves),
    )  # fmt: skip
    (asked.out / "depth.md").write_text(page)


if __name__ == "__main__":
    main()

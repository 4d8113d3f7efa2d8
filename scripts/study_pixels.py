"""Compare forms of zoo/fcn and zoo/segnet on road scenes; write docs/results/pixels.md.

python scripts/study_pixels.py                 # 5 forms of 3 seeds: some 25 minutes of one core
python scripts/study_pixels.py --seeds 0 --out /tmp/look run.minibatches=20
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import training

ROOT = Path(__file__).resolve().parents[1]
FORMS = {
    "FCN-32s": ("task=zoo/fcn", "task.net=32s"),
    "FCN-16s": ("task=zoo/fcn", "task.net=16s"),
    "FCN-8s": ("task=zoo/fcn", "task.net=8s"),
    "SegNet, indices": ("task=zoo/segnet", "task.upsample=index"),
    "SegNet, bilinear": ("task=zoo/segnet", "task.upsample=bilinear"),
}
SCORES = ("mIoU", "accuracy", "boundary_F1")


def line(name: str, runs: Sequence[dict[str, Any]]) -> list[str]:
    """Return a row: the mean of each score over the seeds, with the least and the most."""
    row = [name, " ".join(f"`{word}`" for word in FORMS[name])]
    for score in SCORES:
        values = [run["test"][score] for run in runs]
        row.append(f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
    return [*row, f"{statistics.median(run['seconds'] for run in runs):.0f}"]


def page(found: dict[str, list[dict[str, Any]]], where: dict[str, Any]) -> str:
    """Return the page."""
    head = ["network", "settings", *(score.replace("_", " ") for score in SCORES), "seconds"]
    rows = [head, ["---"] * len(head), *(line(name, runs) for name, runs in found.items())]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    seeds = len(next(iter(found.values())))
    return f"""# Fine and coarse class maps

{table}

- Test scores on drawn road scenes, one worker, means of {seeds} seed(s), the least and the most;
  all of it: `python scripts/study_pixels.py`. They say what the forms are to each other here, not
  what they reach on photographs.
- FCN-32s enlarges scores of its last layer alone; 16s and 8s add those of layers before (Long,
  Shelhamer and Darrell, 2015). With `task.fine`, as here, all strides are half as long.
- SegNet puts maxima back where the encoder found them (`index`); `bilinear` enlarges without
  knowing where they were (Badrinarayanan et al., 2017). Boundary F1 is of edges within
  0.75 % of the diagonal.
- {where["cpu"]}, {where["cores"]} cores, torch {where["torch"]}, {where["date"]}; seconds are
  longer on a busy machine.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Train, print each run, write the figures and the page; return the exit code."""
    p = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    p.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    p.add_argument("--out", type=Path, default=ROOT / "docs" / "results", metavar="DIR")
    p.add_argument("--runs", type=Path, default=ROOT / "outputs" / "pixels", metavar="DIR",
                   help="runs that have finished there are not made again")  # fmt: skip
    p.add_argument("more", nargs="*", help="settings of all runs, as run.minibatches=20")
    options = p.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in FORMS}
    for seed in options.seeds:
        for name, words in FORMS.items():
            folder = options.runs / f"{name.replace(', ', '-')}-{seed}"
            run = training.resumed([*words, f"seed={seed}", *options.more], folder)
            found[name].append({key: run[key] for key in ("test", "seconds")})
            print(name, seed, {score: round(run["test"][score], 3) for score in SCORES}, flush=True)
    kept = {"machine": training.machine(), "runs": found}
    (options.out / "pixels.json").write_text(json.dumps(kept, indent=1) + "\n")
    (options.out / "pixels.md").write_text(page(found, training.machine()))
    return 0


if __name__ == "__main__":
    sys.exit(main())

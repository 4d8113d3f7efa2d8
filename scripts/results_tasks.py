"""Train every task by its recipe: with three seeds, and under three rules; write page and gallery.

python scripts/results_tasks.py                       # what is missing of 96 runs: two hours
python scripts/results_tasks.py --tasks zoo/nic --rules easgd --minibatches 40 --out /tmp/look
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from omegaconf import OmegaConf
from PIL import Image
from training import machine, train

from dlplatform.task import tasks

ROOT = Path(__file__).resolve().parents[1]
WORKERS = {"alone": 1, "ssgd": 2, "easgd": 2, "hybrid": 4}
LONGER = {"hybrid": 2}
"""Times as many minibatches, so that each worker makes as many steps as one of two."""
TUNED = {("zoo/dqn", "easgd"): ("task.lr=0.003",), ("zoo/dqn", "hybrid"): ("task.lr=0.002",)}
"""Settings for a rule that are not those of the recipe: chosen by validation scores."""
SEEDS = {"alone": (0, 1, 2), "ssgd": (0,), "easgd": (0,), "hybrid": (0,)}
KEPT = ("task", "rule", "workers", "seed", "minibatches", "primary", "score", "test", "baselines",
        "seconds", "load")  # fmt: skip
FIELD = ("task", "rule", "seed")


def names() -> list[str]:
    """Return the tasks of this project that have a recipe of their name."""
    ours = [name for name, cls in tasks().items() if cls.__module__.startswith("trainers.")]
    return [n for n in ours if (ROOT / "configs" / "experiment" / f"{n}.yaml").exists()]


def length(name: str) -> int:
    """Return the number of minibatches of a task's recipe."""
    recipe = OmegaConf.load(ROOT / "configs" / "experiment" / f"{name}.yaml")
    usual = getattr(tasks()[name], "minibatches", 1000)
    return int(OmegaConf.select(recipe, "run.minibatches", default=usual))


def leaf(name: str) -> str:
    """Return a task's name as that of a file."""
    return name.replace("/", "-")


def run(name: str, rule: str, seed: int, folder: Path, more: Sequence[str]) -> dict[str, Any]:
    """Train a task by its recipe under a rule."""
    words = [f"experiment={name}", f"rule={rule}", f"workers={WORKERS[rule]}", f"seed={seed}"]
    words += [f"boxes={2 if WORKERS[rule] > 2 else 1}", *TUNED.get((name, rule), ()), *more]
    if rule in LONGER and not more:
        words += [f"run.minibatches={LONGER[rule] * length(name)}"]
    found = train(words, folder / f"{leaf(name)}-{rule}-{seed}")
    return {**{key: found[key] for key in KEPT}, "cpu": machine()["cpu"]}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return a line for each task: its scores, and what they stand against."""
    head = ["task", "score", "baselines", "one worker, seeds 0, 1, 2", "ssgd, 2 workers"]
    head += ["easgd, 2 workers", "hybrid, 4 workers", "seconds, one worker"]
    lines = [head, ["---", "---", "---", *["---:"] * 5]]
    for name in dict.fromkeys(row["task"] for row in rows):
        mine = [row for row in rows if row["task"] == name]
        of = {rule: [row for row in mine if row["rule"] == rule] for rule in WORKERS}
        base = ", ".join(f"{key} {value:.3g}" for key, value in mine[0]["baselines"].items())
        cells = [f"`{name}`", mine[0]["primary"], base]
        cells += [", ".join(f"{row['score']:.3g}" for row in of[rule]) or "-" for rule in WORKERS]
        seconds = [row["seconds"] for row in of["alone"]]
        lines.append([*cells, f"{statistics.median(seconds):.0f}" if seconds else "-"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def behind(rows: Sequence[dict[str, Any]]) -> str:
    """Return which rules reach less than 95 % of two synchronous workers, and how much."""
    sync = {row["task"]: row["score"] for row in rows if row["rule"] == "ssgd"}
    shares = [(row["task"], row["rule"], row["score"] / sync.get(row["task"], row["score"]))
              for row in rows if row["rule"] in ("easgd", "hybrid")]  # fmt: skip
    found = [f"`{task}` {rule} {share:.0%}" for task, rule, share in shares if share < 0.95]
    return ", ".join(found) or "none"


def processors(rows: Sequence[dict[str, Any]]) -> str:
    """Return what the tasks were trained on; the kind that most have without their names."""
    on = {cpu: sorted({row["task"] for row in rows if row["cpu"] == cpu})
          for cpu in sorted({row["cpu"] for row in rows})}  # fmt: skip
    most, *others = sorted(on, key=lambda cpu: -len(on[cpu]))
    return "; ".join([most, *(f"{', '.join(f'`{n}`' for n in on[cpu])}: {cpu}" for cpu in others)])


def page(on: dict[str, Any]) -> str:
    """Return the page of what tasks.json holds: runs, and the machine they ran on."""
    rows = on["runs"]
    loads = [row["load"] for row in rows]
    tuned = ", ".join(f"`{n}` {rule} `{' '.join(words)}`" for (n, rule), words in TUNED.items())
    shown = sorted({row["task"] for row in rows if row["rule"] == "alone" and not row["seed"]})
    pictures = "\n\n".join(f"## {name}\n\n![{name}](tasks/{leaf(name)}.png)" for name in shown)
    return f"""# What every task learns

Test scores of the recipes in `configs/experiment`, made for two cores and a minute or two. Data are
drawn by rule or come with a package: a score says that a task learns, not what it would reach on
the data of its paper.

{table(rows)}

- A row: `dlp train experiment=TASK rule=RULE workers=N seed=SEED run.threads=1`, `boxes=2` with
  four workers; all of them: `python scripts/results_tasks.py`. One worker is `rule=alone`.
- One worker makes a step of every minibatch. Two share the same number of minibatches, and the four
  of `hybrid`, in groups of two, have twice as many: in all three each worker makes half as many
  steps as one alone, and `ssgd` and a group average two minibatches in each.
- [A centre follows at two thirds of the pace of two workers](../rules.md#learning-rates), which
  games take most harm of ([all of them](games.md)). These have another rate than their recipe,
  chosen by validation scores: {tuned}.
- Below 95 % of `ssgd` with two workers: {behind(rows)}.
- {on["cores"]} cores of {processors(rows)}; Python {on["python"]}, torch {on["torch"]},
  {on["date"]}, load average {min(loads):.1f} to {max(loads):.1f}. Figures: `tasks.json`.

Pictures are of the run of one worker with seed 0.

{pictures}
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Train what is missing, and write page, figures and pictures; return the exit code."""
    p = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    p.add_argument("--tasks", nargs="+", default=names(), choices=names(), metavar="TASK")
    p.add_argument("--rules", nargs="+", default=list(WORKERS), choices=WORKERS, metavar="RULE")
    p.add_argument("--minibatches", type=int, default=0, help="of every run, for a quick look")
    p.add_argument("--out", type=Path, default=ROOT / "docs" / "results", metavar="DIR")
    p.add_argument("--runs", type=Path, default=ROOT / "outputs" / "tasks", metavar="DIR")
    p.add_argument("--jobs", type=int, default=1, help="runs at the same time (times suffer)")
    options = p.parse_args(argv)
    (options.out / "tasks").mkdir(parents=True, exist_ok=True)
    more = [f"run.minibatches={options.minibatches}"] if options.minibatches else []
    found = options.out / "tasks.json"
    data: dict[str, Any] = json.loads(found.read_text()) if found.exists() else {"runs": []}
    done = {tuple(row[key] for key in FIELD): row for row in data["runs"]}
    plan = [(name, rule, seed) for rule in options.rules for name in options.tasks
            for seed in SEEDS[rule]]  # fmt: skip
    waiting = sorted((key for key in plan if key not in done), key=lambda one: one[2])
    with ThreadPoolExecutor(options.jobs) as pool:
        trained = pool.map(lambda key: run(*key, options.runs, more), waiting)
        for number, (key, row) in enumerate(zip(waiting, trained, strict=True), 1):
            done[key] = row
            words = " ".join(map(str, key))
            print(f"{number}/{len(waiting)} {words}: {row['score']:.4f}", flush=True)
            data = {**machine(), "runs": [done[one] for one in sorted(done)]}
            found.write_text(json.dumps(data, indent=1) + "\n")
            if key[1:] == ("alone", 0):
                source = options.runs / f"{leaf(key[0])}-alone-0" / "result.png"
                small = Image.open(source).convert("RGB").quantize(256)  # a third of the bytes
                small.save(options.out / "tasks" / f"{leaf(key[0])}.png", optimize=True)
    (options.out / "tasks.md").write_text(page(data))
    print(table(data["runs"]))
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(main())

"""Train zoo/digits under every rule with several seeds; write the table, the curves, the picture.

python scripts/results_digits.py                    # 15 runs, results into docs/results
python scripts/results_digits.py --reuse            # only the runs that are still missing
python scripts/results_digits.py --minibatches 80 --seeds 0 --out /tmp/look --runs /tmp/runs
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from training import machine, result, train

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
RULES = ("alone", "ssgd", "asgd", "easgd", "hybrid")
WORKERS, BOXES = 4, 2
COLOURS = ("black", "tab:blue", "tab:orange", "tab:green", "tab:red")
BEGIN, END = "<!-- digits: written by scripts/results_digits.py -->", "<!-- end of digits -->"
FRAME = f"""# Results

What the tasks of this project reach, with the command, the machine and the date. Every figure
comes from a script in `scripts/`; nothing is typed by hand. Beside this page:
[every task](tasks.md), [games](games.md), [depth](depth.md), [rules on simulated fleets](rules.md).

{BEGIN}
{END}
"""


@dataclass(frozen=True)
class Run:
    """One training: a rule, a seed, a length, and the folder it writes to."""

    rule: str
    seed: int
    minibatches: int
    folder: Path

    @property
    def workers(self) -> int:
        """Return the number of workers: a rule without exchange has one."""
        return 1 if self.rule == "alone" else WORKERS

    def words(self) -> list[str]:
        """Return the settings of ``dlp train``."""
        return [
            *("task=zoo/digits", f"rule={self.rule}", f"workers={self.workers}"),
            *(f"boxes={1 if self.workers == 1 else BOXES}", f"seed={self.seed}"),
            f"run.minibatches={self.minibatches}",
        ]

    def result(self) -> dict[str, Any] | None:
        """Return what the run wrote, or None when it has not finished at this length."""
        found = result(self.folder)
        same = found and (found["rule"], found["seed"], found["minibatches"])
        return found if same == (self.rule, self.seed, self.minibatches) else None

    def train(self) -> None:
        """Train in a fresh folder; raise with the last line said when that fails."""
        train(self.words(), self.folder)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    p = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    p.add_argument("--rules", nargs="+", default=list(RULES), choices=RULES, metavar="RULE")
    p.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED")
    p.add_argument(
        "--minibatches", type=int, default=2000, help="of every run, all workers together"
    )
    p.add_argument("--out", type=Path, default=RESULTS, help="folder of the table and pictures")
    p.add_argument("--runs", type=Path, default=ROOT / "outputs" / "results-digits")
    p.add_argument("--reuse", action="store_true", help="keep the runs that have finished")
    p.add_argument("--jobs", type=int, default=1, help="runs at the same time (times suffer)")
    return p.parse_args(argv)


def train_all(runs: Sequence[Run], reuse: bool, jobs: int) -> None:
    """Train what is to be trained, a line for each run."""
    todo = [run for run in runs if not (reuse and run.result())]
    with ThreadPoolExecutor(jobs) as pool:
        for number, run in enumerate(pool.map(_trained, todo), 1):
            result = run.result() or {}
            score, seconds = result.get("score", 0.0), result.get("seconds", 0.0)
            words = f"{run.rule} seed {run.seed}: {100 * score:.2f} % in {seconds:.0f} s"
            print(f"{number}/{len(todo)} {words}", flush=True)


def _trained(run: Run) -> Run:
    run.train()
    return run


def gather(runs: Sequence[Run]) -> dict[str, Any]:
    """Return everything the table and the plot need, as JSON values."""
    rows = []
    for run in runs:
        found = run.result()
        assert found is not None, run
        keys = ("rule", "seed", "workers", "boxes", "score", "seconds", "load", "baselines")
        curve = [[row["minibatch"], row["score"]] for row in found["validation"]]
        rows.append({**{key: found[key] for key in keys}, "validation": curve})
    return {
        "task": "zoo/digits",
        "minibatches": runs[0].minibatches,
        **machine(),
        "baselines": baselines(rows),
        "runs": rows,
    }


def baselines(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the mean of each baseline over the seeds (only the untrained network varies)."""
    by_seed = {row["seed"]: row["baselines"] for row in rows}
    names = next(iter(by_seed.values()))
    return {name: statistics.mean(one[name] for one in by_seed.values()) for name in names}


def of_rule(data: dict[str, Any], rule: str) -> list[dict[str, Any]]:
    """Return the runs of one rule in the order of their seeds."""
    return sorted((r for r in data["runs"] if r["rule"] == rule), key=lambda row: row["seed"])


def rules_of(data: dict[str, Any]) -> list[str]:
    """Return the rules that were run, in the order of the table."""
    return [rule for rule in RULES if of_rule(data, rule)]


def table(data: dict[str, Any]) -> str:
    """Return the results as a table of markdown."""
    seeds = sorted({row["seed"] for row in data["runs"]})
    head = ["rule", "workers", "boxes", *(f"seed {seed}" for seed in seeds)]
    head += ["mean", "worst", "minibatches", "seconds (median)"]
    lines = [_row(head), _row(["---"] + ["---:"] * (len(head) - 1))]
    for rule in rules_of(data):
        rows = of_rule(data, rule)
        scores = [row["score"] for row in rows]
        seconds = statistics.median(row["seconds"] for row in rows)
        cells = [f"`{rule}`", str(rows[0]["workers"]), str(rows[0]["boxes"])]
        cells += [_percent(score) for score in (*scores, statistics.mean(scores), min(scores))]
        lines.append(_row([*cells, str(data["minibatches"]), f"{seconds:.0f}"]))
    return "\n".join(lines)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _percent(score: float) -> str:
    return f"{100 * score:.2f} %"


def section(data: dict[str, Any], pictures: bool) -> str:
    """Return the whole section of the results page."""
    loads = [row["load"] for row in data["runs"]]
    base = ", ".join(f"{name} {_percent(value)}" for name, value in data["baselines"].items())
    sizes = f"workers={WORKERS} boxes={BOXES} seed=SEED run.minibatches={data['minibatches']}"
    command = f"dlp train task=zoo/digits rule=RULE {sizes} run.threads=1"
    shown = "![Validation accuracy](digits_rules.png)\n\n![One hybrid run](digits_hybrid.png)"
    return f"""## zoo/digits: test accuracy of every rule

{table(data)}

Baselines (test accuracy): {base}.

- Command of a row: `{command}`,
  `alone` with `workers=1 boxes=1`. All of them: `python scripts/results_digits.py`.
- {data["cpu"]}, {data["cores"]} cores, Python {data["python"]}, torch {data["torch"]},
  {data["date"]}, load average {min(loads):.1f} to {max(loads):.1f} while it ran. Whatever else runs
  there makes the seconds longer; they include the evaluations.
- A minibatch has 16 images and counts once, whoever trains it. `ssgd` makes one step of {WORKERS}
  minibatches and `hybrid` of two, so at the same number of minibatches they make fewer steps.
- The test split has 360 digits, so one digit is 0.28 points. Figures: `digits.json`.
{f"{chr(10)}{shown}{chr(10)}" if pictures else ""}"""


def fill(page: Path, text: str) -> None:
    """Put text between the marks of a page; a page that is missing gets the frame first."""
    old = page.read_text() if page.exists() else FRAME
    before, _, rest = old.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise SystemExit(f"{page} has no {BEGIN} ... {END} - put the two marks in")
    page.write_text(f"{before}{BEGIN}\n{text.strip()}\n{END}{after}")


def draw(data: dict[str, Any], path: Path) -> None:
    """Draw validation accuracy over minibatches: the mean of the seeds, and their range."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    figure, axes = plt.subplots(figsize=(8, 4.5))
    for rule in rules_of(data):
        curves = [np.array(row["validation"]) for row in of_rule(data, rule)]
        x = np.linspace(max(c[0, 0] for c in curves), data["minibatches"], 60)
        y = np.array([np.interp(x, c[:, 0], c[:, 1]) for c in curves])
        colour = COLOURS[RULES.index(rule)]
        axes.plot(x, y.mean(0), color=colour, lw=1.8, label=rule)
        axes.fill_between(x, y.min(0), y.max(0), color=colour, alpha=0.15, lw=0)
    for (name, value), style in zip(data["baselines"].items(), ("--", ":", "-."), strict=False):
        axes.axhline(value, ls=style, color="grey", lw=1, label=f"{name} {value:.3f} (test)")
    axes.set(xlabel="minibatches of the whole job", ylabel="validation accuracy", ylim=(0, 1.02))
    axes.set_title(f"zoo/digits: mean and range of {len(of_rule(data, rules_of(data)[0]))} seeds")
    axes.grid(alpha=0.25)
    axes.legend(framealpha=0.85, fontsize=9, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def write(data: dict[str, Any], runs: Sequence[Run], out: Path) -> None:
    """Write the figures, the pictures and the pages that quote them."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "digits.json").write_text(json.dumps(data, indent=1) + "\n")
    draw(data, out / "digits_rules.png")
    hybrid = [run for run in runs if run.rule == "hybrid"]
    if hybrid:
        shutil.copyfile(hybrid[0].folder / "result.png", out / "digits_hybrid.png")
    fill(out / "README.md", section(data, pictures=bool(hybrid)))
    if out.resolve() == RESULTS:
        fill(ROOT / "README.md", table(data))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    options = parse(argv)
    runs = [
        Run(rule, seed, options.minibatches, options.runs.absolute() / f"{rule}-{seed}")
        for rule in options.rules
        for seed in options.seeds
    ]
    train_all(runs, options.reuse, options.jobs)
    data = gather(runs)
    write(data, runs, options.out)
    print(table(data), f"\nwritten to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

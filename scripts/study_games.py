"""Train zoo/dqn on each of its games; write the table and the pictures of docs/results/games.md.

python scripts/study_games.py                             # 12 runs, about a quarter of an hour
python scripts/study_games.py --games racer --out /tmp/look --rules alone
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import training

ROOT = Path(__file__).resolve().parents[1]
NEEDED = {"breakout": ("times_random", 5.0), "racer": ("times_random_steps", 2.0),
          "galaga": ("times_random", 3.0)}  # fmt: skip
"""The score that has to reach so many times that of random play."""
WORKERS = {"alone": 1, "ssgd": 2, "easgd": 2, "hybrid": 2}
STEPS = 4000
"""Of every worker: each plays and learns as long as one alone does."""
HEAD = (
    "game | rule | workers | return | random play | one action | times random | steps | "
    "times random's | needed | reached | seconds"
)


def train(game: str, rule: str, seed: int, folder: Path, more: Sequence[str]) -> dict[str, Any]:
    """Train one game under one rule."""
    words = ["task=zoo/dqn", f"task.game={game}", f"rule={rule}", f"workers={WORKERS[rule]}"]
    words += [f"run.minibatches={WORKERS[rule] * STEPS}", f"task.minibatches={STEPS}"]
    return training.resumed([*words, f"seed={seed}", *more], folder)


def cells(game: str, found: dict[str, Any]) -> list[str]:
    """Return a line of the table."""
    test, base = found["test"], found["baselines"]
    name, factor = NEEDED[game]
    figures = [test["return"], base["random"], base["one action"], test["times_random"]]
    figures += [test["steps"], test["times_random_steps"]]
    return [
        *(game, f"`{found['rule']}`", str(found["workers"])),
        *(f"{value:.2f}" for value in figures),
        f"{name} {factor:g}",
        "yes" if test[name] >= factor else "no",
        f"{found['seconds']:.0f}",
    ]


def page(rows: Sequence[Sequence[str]], games: Sequence[str], seed: int, load: float) -> str:
    """Return the page."""
    table = [HEAD.split(" | "), ["---"] * len(HEAD.split(" | ")), *rows]
    lines = "\n".join("| " + " | ".join(row) + " |" for row in table)
    shown = "\n\n".join(f"![{game}](games_{game}.png)" for game in games)
    return f"""# zoo/dqn: what it learns of three games

{lines}

- Means of 100 test episodes, greedy play, at most 300 steps each; random play in the same number
  of episodes. A row: `dlp train task=zoo/dqn task.game=GAME rule=RULE workers=N seed={seed}` with
  `task.minibatches={STEPS}` and `run.minibatches` of {STEPS} for each worker, so that each plays
  and learns as long as one alone; all of them: `python scripts/study_games.py`.
- {date.today()}, load average {load:.1f} at the end: seconds are longer on a busy machine. They
  include the evaluations.
- The games are our own, 16x16 pixels. They show that it learns, not what it reaches on Atari.

{shown}
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Train, and write page, figures and pictures; return the exit code."""
    p = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    p.add_argument("--games", nargs="+", default=list(NEEDED), choices=NEEDED, metavar="GAME")
    p.add_argument("--rules", nargs="+", default=list(WORKERS), choices=WORKERS, metavar="RULE")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", type=Path, default=ROOT / "docs" / "results", metavar="DIR")
    p.add_argument("--runs", type=Path, default=ROOT / "outputs" / "games", metavar="DIR")
    p.add_argument("more", nargs="*", help="settings of all runs, as run.minibatches=500")
    options = p.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    rows, results = [], []
    for game in options.games:
        for rule in options.rules:
            folder = options.runs / f"{game}-{rule}"
            found = train(game, rule, options.seed, folder, options.more)
            results.append({**found, "game": game})
            rows.append(cells(game, found))
            print(" | ".join(rows[-1]), flush=True)
        last = options.runs / f"{game}-{options.rules[0]}" / "result.png"
        shutil.copy(last, options.out / f"games_{game}.png")
    (options.out / "games.json").write_text(json.dumps(results, indent=1) + "\n")
    text = page(rows, options.games, options.seed, os.getloadavg()[0])
    (options.out / "games.md").write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Study the rules on simulated fleets: accuracy, stragglers, bytes, goodput.

python scripts/study_rules.py --json docs/results/rules.json          # everything, resumable
python scripts/study_rules.py --json FILE --page docs/results/rules.md # table and plots of it
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from rulestudy import goodput, plan, real
from rulestudy.page import write_page
from rulestudy.problems import PROBLEMS, TEST_SEEDS, Trial, run

PARTS: dict[str, Callable[[str, dict[str, Any]], dict[str, Trial]]] = {
    "tune": lambda problem, done: plan.tuning(problem),
    "test": plan.accuracy,
    "slow": plan.stragglers,
    "wire": plan.narrow,
    "long": plan.longer,
    "real": real.trials,
}


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="what was found; it is continued")
    parser.add_argument("--only", default=",".join([*PARTS, "goodput"]), help="parts, with commas")
    parser.add_argument("--problems", default=",".join(PROBLEMS), help="with commas")
    parser.add_argument("--rules", default="", help="names in the table; empty: all")
    parser.add_argument("--seeds", type=int, default=len(TEST_SEEDS), help="test seeds, from 0 on")
    parser.add_argument("--workers", default="", help="numbers of workers, with commas; all")
    parser.add_argument("--minibatches", type=int, default=0, help="of a run, for a quick look")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--page", type=Path, help="write the page and plots of what is in --json")
    given = parser.parse_args()
    for name, allowed in (("only", [*PARTS, "goodput"]), ("problems", PROBLEMS)):
        for word in getattr(given, name).split(","):
            if word not in allowed:
                parser.error(f"--{name} {word} - allowed: {', '.join(allowed)} - do: correct it")
    return given


def worked(task: tuple[str, Trial]) -> tuple[str, dict[str, Any]]:
    """Run one trial; a run that diverges is a result, too."""
    key, trial = task
    begin = time.perf_counter()
    result = asdict(real.run(trial) if key.startswith("real/") else run(trial))
    result |= {"factor": trial.factor, "real_s": round(time.perf_counter() - begin, 2)}
    result |= {"steps": sum(result["steps"]), "loss": min(result["loss"], 99.0)}
    return key, result


def same(found: dict[str, Any] | None, trial: Trial) -> bool:
    """Tell whether a trial was run as it is now: the learning rate may have been chosen anew."""
    return found is not None and found["factor"] == trial.factor


def work_off(trials: dict[str, Trial], done: dict[str, Any], given: argparse.Namespace) -> None:
    """Run what has not been run yet, on all processors; keep what is done in the file."""
    short = {"minibatches": given.minibatches} if given.minibatches else {}
    few = {int(count) for count in given.workers.split(",") if count} or set(plan.WORKERS)
    waiting = [
        (key, replace(one, **short))
        for key, one in trials.items()
        if not same(done.get(key), one)
        and (one.split != "test" or (one.seed < given.seeds and one.workers in few))
    ]
    with multiprocessing.get_context("spawn").Pool(given.processes) as pool:
        alone = bool(waiting) and waiting[0][0].startswith("real/")  # these have processes of own
        results = map(worked, waiting) if alone else pool.imap_unordered(worked, waiting)
        for number, (key, result) in enumerate(results, 1):
            done[key] = result
            if number % 20 == 0 or number == len(waiting):
                given.json.write_text(json.dumps(done))
                print(f"{number}/{len(waiting)} {key} {result['accuracy']:.4f}", flush=True)


def main() -> None:
    """Run the parts asked for."""
    given = arguments()
    done = json.loads(given.json.read_text()) if given.json.exists() else {}
    wanted = set(filter(None, given.rules.split(","))) or set(plan.RULES)
    for name in set(plan.RULES) - wanted:
        del plan.RULES[name]
    for part in given.only.split(","):
        if part == "goodput":
            done["goodput"] = goodput.table()
            given.json.write_text(json.dumps(done))
            continue
        for problem in given.problems.split(","):
            work_off(PARTS[part](problem, done), done, given)
    if given.page:
        write_page(done, given.page)


if __name__ == "__main__":
    main()

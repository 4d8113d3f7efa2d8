"""Judge a trained detector at its service: alarms of fallen people, of kinds; tags of films.

python scripts/judge.py --run outputs/state
python scripts/judge.py --run outputs/objects
python scripts/judge.py --run outputs/weapons --alarm --recall 0.95

A run that tells states of people watches drawn films in which they fall, sit, crouch, run; another
one tags drawn films of objects, and finds those alike. With ``--alarm`` the score of an alarm is
chosen on validation pictures, so that a wanted share of the objects is found, or so that false
alarms are few, and judged on test pictures; of all kinds, or of those that are named.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from functools import partial

import torch

from dlplatform.cli import guard
from trainers.blocks.detector import Detector
from trainers.pipeline.judged import counted, threshold_at, threshold_for
from trainers.pipeline.trial import judge_falls, judge_tags
from trainers.pipeline.watch import answers_in, labels_of, load_detector

Rows = Mapping[str, Mapping[str, float]]


def main() -> None:
    """Judge what the run can do and print a table, or a line of JSON."""
    given = arguments()
    torch.set_num_threads(given.threads)
    task, models = load_detector(given.run, given.device)
    kinds, sees = task.examples("test").kinds, partial(task.look, models)
    with torch.inference_mode():
        if given.alarm is not None:
            rows = alarms(task, models, given)
        elif kinds.states:
            rows = judge_falls(lambda film: sees, given.films, given.seed)
        else:
            found = judge_tags(lambda film: sees, kinds.names, given.films, given.seed)
            rows = {"tags of films": found}
    print(json.dumps(rows) if given.json else table(rows))


def alarms(
    task: Detector, models: dict[str, torch.nn.Module], given: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Return what becomes of two choices of a score, on validation and on test pictures."""
    labels = labels_of(task.examples("test").kinds, given.alarm)
    val, test = (list(answers_in(task, models, split)) for split in ("val", "test"))
    chosen = {
        f"recall {given.recall:g} wanted": threshold_for(val, given.recall, labels),
        f"{given.false_alarms:g} false a picture": threshold_at(val, given.false_alarms, labels),
    }
    return {
        f"{name}, {split}": vars(counted(answers, one.score, labels))
        for name, one in chosen.items()
        for split, answers in (("val", val), ("test", test))
    }


def table(rows: Rows) -> str:
    """Return rows under the names of their columns."""
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    wide = max(map(len, rows))
    lines = [" " * wide + "".join(f"  {name}" for name in names)]
    for head, row in rows.items():
        cells = [f"{row[name]:.3f}" if name in row else "" for name in names]
        row_of = "".join(f"  {cell:>{len(name)}}" for cell, name in zip(cells, names, strict=True))
        lines.append(f"{head:<{wide}}{row_of}")
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", required=True, help="folder of the run that trained the detector")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, auto (default: cpu)")
    parser.add_argument("--threads", type=int, default=1, help="of the detector on a CPU")
    parser.add_argument("--alarm", nargs="*", metavar="KIND", help="judge alarms of these kinds")
    parser.add_argument("--recall", type=float, default=0.95, help="share that must be found")
    parser.add_argument("--false-alarms", type=float, default=0.1, help="allowed in a picture")
    parser.add_argument("--films", type=int, default=3, help="of each story, of each theme")
    parser.add_argument("--seed", type=int, default=0, help="of the films")
    parser.add_argument("--json", action="store_true", help="print a line of JSON")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(guard(main))

"""Watch films or a camera with a trained detector: tracks, alarms, an index of what is seen when.

python scripts/watch.py --run outputs/state street.mp4 --fallen Lying --zone walk=0,90,99,90,99,128
python scripts/watch.py --run outputs/weapons camera:0 --seconds 60 --alarm knife --recall 0.95
python scripts/watch.py --run outputs/objects a.mp4 b.mp4 c.mp4 --out found
python scripts/watch.py --index found/index.json --find "dot cross"
python scripts/watch.py --run outputs/faces gate.mp4 --people known --distance outputs/distance

Alerts are printed as they come, a line of JSON each; then a line for each film, and for each the
films most like it. Lines and drawn films go to the folder, and ``index.json`` with them: in it
``--find`` looks up when which film shows a kind. ``--people`` is a folder with a folder of pictures
for everybody whose face is to be named, by a run of retrieval/fewshot that tells faces apart.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from dlplatform.cli import guard
from dlplatform.errors import UsageError
from trainers.blocks.detector import Detector
from trainers.data.instances import Kinds
from trainers.pipeline.events import Alert, Polygon, Rule
from trainers.pipeline.frame import Stage, head
from trainers.pipeline.judged import threshold_at, threshold_for
from trainers.pipeline.known import aligner, enrolled, load_embedding
from trainers.pipeline.tags import Hit, Tagger
from trainers.pipeline.watch import Watching, answers_in, labels_of, load_detector, watch


def main() -> None:
    """Watch all sources, one after the other."""
    given = arguments()
    if given.find:
        print("\n".join(json.dumps(vars(hit)) for hit in found(given)))
        return
    if not given.run or not given.source:
        raise UsageError("films are watched with a detector - do: name a --run and films to watch")
    task, models = load_detector(given.run, given.device)
    kinds = task.examples("test").kinds
    zones = dict(zone(text) for text in given.zone)
    rules = []
    if given.fallen:
        rules.append(Rule("fallen", tuple(given.fallen), lasts=given.lasts, zones=zones))
    if given.alarm:
        labels = labels_of(kinds, given.alarm)
        sure = given.sure if given.sure is not None else chosen(task, models, given, labels)
        task.shown = min(task.shown, sure)
        named = ("alarm", (), tuple(given.alarm), sure)
        rules.append(Rule(*named, lasts=given.lasts, zones=zones))
    tagger = Tagger(kinds)
    with torch.inference_mode():
        watching = Watching(
            rules,
            heads=people(task, models, given) if given.people else (),
            tell=tell,
            folder=given.out,
            seconds=given.seconds,
            tagger=tagger,
        )
        for source in given.source:
            told = watch(source, lambda image_HW3: task.look(models, image_HW3), kinds, watching)
            told = {name: told[name] for name in SHOWN if name in told}
            print(json.dumps({"source": source, **told}), flush=True)
    for source in given.source if len(given.source) > 1 else ():
        print(json.dumps({"source": source, "alike": tagger.alike(source)}))
    tagger.save((given.out or Path(told["lines"]).parent) / "index.json")


SHOWN = ("tracks", "said", "seen", "speed", "lines", "picture")


def found(given: argparse.Namespace) -> list[Hit]:
    """Return where the films of an index show a kind; raises UsageError for one they never show."""
    tagger = Tagger(Kinds(()))
    tagger.load(given.index)
    names = sorted({name for seen in tagger.seen.values() for _, name in seen})
    labels_of(Kinds(tuple(names)), [given.find])
    return tagger.search(given.find)


def people(
    task: Detector, models: dict[str, torch.nn.Module], given: argparse.Namespace
) -> list[tuple[str, Stage]]:
    """Return the stages that turn faces upright and name them."""
    if not given.distance:
        raise UsageError(
            "--people without --distance - allowed: a run of retrieval/fewshot - do: name it"
        )
    embed, side = load_embedding(given.distance)
    known = enrolled(given.people, lambda image: task.look(models, image), embed, side, given.far)
    print(f"{len(set(known.index.labels))} people, up to {known.far:.2f} apart", file=sys.stderr)
    return [("faces", aligner(side)), ("names", head("name", known))]


def chosen(
    task: Detector, models: dict[str, torch.nn.Module], given: argparse.Namespace, labels: list[int]
) -> float:
    """Return the score at which enough is found in validation pictures, or few alarms are false."""
    with torch.inference_mode():
        answers = answers_in(task, models, "val")
        if given.recall is not None:
            found = threshold_for(answers, given.recall, labels)
        else:
            found = threshold_at(answers, given.false_alarms, labels)
    facts = f"recall {found.recall:.1%}, {found.false_per_picture:.3f} false a picture"
    print(f"from a score of {found.score:.3f} on: {facts} (validation)", file=sys.stderr)
    return found.score


def tell(alert: Alert) -> None:
    """Print an alert at once."""
    print(json.dumps({"alert": alert.record()}), flush=True)


def zone(text: str) -> tuple[str, Polygon]:
    """Return the name and the corners of NAME=X,Y,X,Y,X,Y."""
    name, _, numbers = text.partition("=")
    try:
        values = [float(value) for value in numbers.split(",")]
    except ValueError:
        values = []
    if not name or len(values) < 6 or len(values) % 2:
        raise UsageError(
            f"--zone {text} cannot work - allowed: NAME=X,Y,X,Y,X,Y with three corners or more, in "
            "pixels - do: correct it"
        )
    return name, tuple(zip(values[::2], values[1::2], strict=True))


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source", nargs="*", help="film, GIF, camera:NUMBER or rtsp:// address")
    parser.add_argument("--run", help="folder of the run that trained the detector")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, auto (default: cpu)")
    parser.add_argument("--out", type=Path, help="folder for lines, drawings, index")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="of each source")
    parser.add_argument("--fallen", nargs="+", metavar="STATE", help="tell of these states")
    parser.add_argument("--alarm", nargs="+", metavar="KIND", help="tell of these kinds")
    parser.add_argument("--lasts", type=float, default=1.0, help="seconds before an alert")
    parser.add_argument("--zone", action="append", default=[], help="NAME=X,Y,X,Y,X,Y in pixels")
    parser.add_argument("--sure", type=float, help="score of an alarm (default: by validation)")
    parser.add_argument("--recall", type=float, help="of validation objects, to choose the score")
    parser.add_argument(
        "--false-alarms", type=float, default=0.1, help="a validation picture, to choose the score"
    )
    parser.add_argument("--people", type=Path, help="folder with a folder of faces a person")
    parser.add_argument("--distance", help="run of retrieval/fewshot that tells faces apart")
    parser.add_argument("--far", type=float, help="distance of strangers (default: by the faces)")
    parser.add_argument("--index", type=Path, default=Path("found/index.json"))
    parser.add_argument("--find", metavar="KIND", help="look up in the index instead of watching")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(guard(main))

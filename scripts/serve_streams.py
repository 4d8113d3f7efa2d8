"""Serve many cameras with one detector, and report what every channel got.

python scripts/serve_streams.py --run outputs/state --channels 100 --rate 2 --seconds 20
python scripts/serve_streams.py --run outputs/state rtsp://one rtsp://two lobby.mp4 --fallen

Sources are dealt to the channels in turn; without any, every channel pans over a drawn picture.
Without a run the detector is untrained: what a frame costs is much the same. Alerts are printed as
they come; ``--json`` prints the whole report instead of its sum.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator

import torch

from dlplatform.cli import guard
from trainers.blocks.detector import Detector
from trainers.data.instances import Kinds
from trainers.human.instances import Objects
from trainers.pipeline.events import Alarm, Rule
from trainers.pipeline.frame import Frame, Pipeline, Stage
from trainers.pipeline.sources import open_source
from trainers.pipeline.streams import Server, Serving, paced, panned, together
from trainers.pipeline.tracker import Tracker
from trainers.pipeline.watch import load_detector


def main() -> None:
    """Serve until the time is over, then print the report."""
    given = arguments()
    torch.set_num_threads(given.threads)
    task: Detector
    if given.run:
        task, models = load_detector(given.run, given.device)
    else:
        task = Objects()
        models = {name: model.to(given.device).eval() for name, model in task.models().items()}
    test = task.examples("test")
    names = [f"channel {number:03d}" for number in range(given.channels)]
    pictures = [test[index][0] for index in range(min(len(test), 10))]

    def frames(place: int) -> Iterator[Frame]:
        if not given.source:
            picture = pictures[place % len(pictures)]
            return panned(picture, names[place], 10**9, min(picture.shape[:2]))
        return open_source(given.source[place % len(given.source)]).frames

    def after(name: str) -> Stage:
        stages: dict[str, Stage] = {"tracker": Tracker()}
        if given.fallen:
            stages["alarm"] = alarm(test.kinds)
        return Pipeline(stages)

    serving = Serving(given.batch, given.queue)
    server = Server(together(task, models), names, serving, after)
    sources = {name: paced(frames(place), given.rate) for place, name in enumerate(names)}
    for _ in server.run(sources, given.seconds):
        pass
    told = server.report()
    if given.json:
        print(json.dumps(told))
        return
    broken = [f"{row['channel']}: {row['broken']}" for row in told["channels"] if row["broken"]]
    late = ", ".join(f"{name} {value:.0f} ms" for name, value in told["latency_ms"].items())
    print(
        f"{len(names)} channels, {told['seconds']:.0f} s: {told['frames_per_second']:.1f} frames/s "
        f"in batches of {told['mean_batch']:.1f}\n"
        f"each channel: {told['least']:.2f} to {told['most']:.2f} frames/s, mean {told['mean']:.2f}"
        f"\nfrom arrival to answer: {late}\nstarved: {', '.join(told['starved']) or 'none'}"
    )
    print("\n".join(broken), file=sys.stderr, end="\n" if broken else "")


def alarm(kinds: Kinds) -> Alarm:
    """Return the stage that prints alerts of people who lie."""
    return Alarm(Rule(), kinds, lambda alert: print(json.dumps(alert.record()), flush=True))


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source", nargs="*", help="films, folders, cameras or rtsp:// addresses")
    parser.add_argument("--run", help="folder of the run that trained the detector")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, auto (default: cpu)")
    parser.add_argument("--channels", type=int, default=100)
    parser.add_argument("--rate", type=float, default=5.0, help="frames a second of a channel")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--batch", type=int, default=16, help="most frames of a batch")
    parser.add_argument("--queue", type=int, default=2, help="frames that wait in a channel")
    parser.add_argument("--threads", type=int, default=1, help="of the detector on a CPU")
    parser.add_argument("--fallen", action="store_true", help="tell of people who lie")
    parser.add_argument("--json", action="store_true", help="print the whole report")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(guard(main))

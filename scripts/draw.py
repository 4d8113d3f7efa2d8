"""Draw what the services can be tried on without films or pictures of your own.

python scripts/draw.py people street.gif --scripts fall bench
python scripts/draw.py objects a.gif --about "solid disc" "dot cross" --seed 1
python scripts/draw.py weapons shop.mp4
python scripts/draw.py faces gate.mp4 --seed 2
python scripts/draw.py streets drive.gif
python scripts/draw.py portraits faces

Films are GIFs, or with PyAV .mp4 and others. Portraits are folders: ``known`` has pictures of the
six people of whom some are in films of faces, ``source`` and ``target`` upright faces of others to
learn a distance from (task.data of retrieval/fewshot).
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from dlplatform.cli import guard
from dlplatform.seeds import derive
from trainers.data.scenes import Bytes
from trainers.face.align import aligned
from trainers.pipeline.frame import Frame
from trainers.pipeline.sinks import Reel
from trainers.synth.faces import portrait
from trainers.synth.faces_scene import Look, face_film
from trainers.synth.human_films import SCRIPTS, human_film
from trainers.synth.objects import SUBJECTS, object_film
from trainers.synth.panorama import SMALL, draw_panorama

GUESTS = 6
"""People of films of faces."""
STRANGERS, EACH = 40, 12
"""People to learn a distance from, and pictures of each."""
OTHERS, MORE = 8, 32
"""People to judge it by, and pictures of each."""
FILMS = ("people", "objects", *SUBJECTS, "faces", "streets")


def main() -> None:
    """Draw a film, or folders of portraits."""
    given = arguments()
    if given.what == "portraits":
        portraits(given.to, given.side)
        return
    frames, rate = film(given)
    reel = Reel(given.to)
    for number, image_HW3 in enumerate(frames):
        source = given.to.stem
        reel.add(Image.fromarray(image_HW3), Frame(image_HW3, number / rate, source, number))
    reel.close()


def film(given: argparse.Namespace) -> tuple[tuple[Bytes, ...], float]:
    """Return the frames of a film, and how many there are in a second."""
    if given.what == "people":
        drawn = human_film(given.seed, tuple(given.scripts))
    elif given.what == "objects":
        drawn = object_film(given.seed, about=tuple(given.about))
    elif given.what in SUBJECTS:
        about = SUBJECTS[given.what]
        drawn = object_film(given.seed, about.classes, tuple(given.about), about.look)
    elif given.what == "faces":
        look = Look(side=192, people=GUESTS)
        drawn = face_film(given.seed, 3, rate=5.0, look=look, pool="gallery")
    else:
        street_HW3 = draw_panorama(given.seed, replace(SMALL, width=512)).image_HW3
        shifts = range(0, 512 - 256, 8)
        return tuple(np.ascontiguousarray(street_HW3[:, x : x + 256]) for x in shifts), 5.0
    return drawn.frames, drawn.rate


def portraits(to: Path, side: int) -> None:
    """Write pictures of people: as they are of those in films, else upright faces."""
    for pool, folder, people, shots in (
        ("gallery", "known", GUESTS, 4),
        ("large", "source", STRANGERS, EACH),
        ("external", "target", OTHERS, MORE),
    ):
        for number in range(people):
            own = to / folder / f"{folder}_{number:02d}"
            own.mkdir(parents=True, exist_ok=True)
            for shot in range(shots):
                domain = "probe" if pool != "gallery" and shot % 2 else "gallery"
                face = portrait(0, pool, number, shot, domain, side=96)
                image_HW3 = face.image_HW3
                if pool != "gallery":
                    # a detector's landmarks are off a little
                    random = np.random.RandomState(derive(0, pool, number, shot) % 2**32)
                    marks_J2 = face.marks_J3[:, :2].double().numpy()
                    marks_J2 = marks_J2 + random.normal(0, 1.5, marks_J2.shape)
                    image_HW3 = aligned(image_HW3, marks_J2, side)
                Image.fromarray(image_HW3).save(own / f"{shot:02d}.png")


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=[*FILMS, "portraits"])
    parser.add_argument("to", type=Path, help="film or folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scripts", nargs="+", default=["fall"], choices=list(SCRIPTS))
    parser.add_argument("--about", nargs="+", default=[], metavar="KIND", help="of objects")
    parser.add_argument("--side", type=int, default=48, help="of upright faces, in pixels")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(guard(main))

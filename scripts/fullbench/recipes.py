"""The recipes of the published sizes, and what each of them is measured on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fullbench import detected, folders

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs" / "experiment"


@dataclass(frozen=True)
class Recipe:
    """What to say to ``dlp train`` beside ``experiment=NAME``.

    Args:
        make: writes data into an empty folder and returns what becomes ``task.data``; None: the
            task makes its own.
        minibatches: enough for some seconds on a GPU.
        words: more settings.
        note: what is other than in the recipe.
    """

    make: Callable[[Path], Path] | None
    minibatches: int
    words: tuple[str, ...] = ()
    note: str = ""


RECIPES = {
    "zoo/resnet_full": Recipe(folders.imagenet, 40),
    "zoo/vgg_full": Recipe(folders.imagenet, 40),
    "road/deformable_full": Recipe(folders.cityscapes, 16),
    "zoo/inception_full": Recipe(folders.imagenet, 40),
    "zoo/fcn_full": Recipe(folders.camvid, 40),
    "zoo/segnet_full": Recipe(folders.camvid, 40),
    "zoo/nic_full": Recipe(folders.captions, 40, note="the CNN stands still in the first half"),
    "zoo/dcgan_full": Recipe(folders.faces, 60),
    "zoo/style_full": Recipe(folders.studio, 40),
    "human/instances_full": Recipe(detected.coco, 20),
    "human/pose_full": Recipe(detected.people, 20),
    "human/state_full": Recipe(detected.people, 20),
    "face/detection_full": Recipe(detected.wider_face, 20),
    "zoo/rcnn_full": Recipe(detected.coco, 10),
    "zoo/fast_rcnn_full": Recipe(detected.coco, 20),
    "zoo/faster_rcnn_full": Recipe(detected.coco, 20),
    "zoo/mask_rcnn_full": Recipe(detected.coco, 20),
    "zoo/refine_rcnn_full": Recipe(detected.streets, 20),
    "retrieval/fewshot_full": Recipe(
        folders.domains, 16, note="half of them metric learning, half four episodes each"
    ),
    "zoo/textgen_full": Recipe(folders.text, 60),
    "speech/digits_full": Recipe(folders.speech, 60),
    "human/sensors_full": Recipe(folders.sensors, 300),
    "zoo/digits_full": Recipe(folders.mnist, 1000),
    "zoo/dqn_full": Recipe(
        None, 600, ("task.game=breakout", "task.replay=20000", "task.warm=1000"),
        "our breakout of 16 x 16 in place of Atari's, a small replay",
    ),
}  # fmt: skip


def published() -> list[str]:
    """Return the names of the recipes there are: those above first, in their order."""
    found = [path.relative_to(CONFIGS).with_suffix("") for path in CONFIGS.glob("*/*_full.yaml")]
    names, order = sorted(path.as_posix() for path in found), list(RECIPES)
    return sorted(names, key=lambda n: order.index(n) if n in order else len(order))

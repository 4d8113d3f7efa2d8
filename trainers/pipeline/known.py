"""Whose face it is: turned upright by its landmarks, embedded, and looked up among known people.

Shape legend: N faces, B batch, C channels, H height, W width, 3 RGB, D size of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dlplatform.errors import UsageError
from trainers.blocks.metric import squared_distances
from trainers.data.class_folders import pictures_in
from trainers.data.instances import Found
from trainers.data.meta import embedded
from trainers.data.scenes import Bytes
from trainers.face.align import aligned
from trainers.pictures.files import open_picture
from trainers.pipeline.frame import Frame, Stage
from trainers.retrieval.index import Index

UNKNOWN = "unknown"
Embed = Callable[[Sequence[Bytes]], Tensor]
"""Returns z_ND of length 1 each of upright faces."""


def aligner(side: int) -> Stage:
    """Return the stage that cuts out every face with landmarks upright, as a square of pixels."""

    def cut(frame: Frame) -> Frame:
        return replace(frame, crops=tuple(upright(frame.image_HW3, frame.found, side)))

    return cut


def upright(image_HW3: Bytes, found: Found, side: int) -> list[Bytes]:
    """Return the faces of a picture, turned and scaled by their landmarks."""
    if not len(found.labels_N):
        return []
    if found.joints_NJ3 is None:
        raise UsageError(
            "faces without landmarks cannot be turned upright - allowed: runs of face/detection "
            "that learnt landmarks - do: name another run"
        )
    return [aligned(image_HW3, marks_J3[:, :2].double().numpy(), side) for marks_J3 in
            found.joints_NJ3.cpu()]  # fmt: skip


@dataclass(frozen=True)
class Known:
    """People by name, as a trained distance sees them."""

    embed: Embed
    index: Index
    far: float
    """Distance beyond which a face is nobody's."""

    def __call__(self, crops: Sequence[Bytes]) -> list[str]:
        """Return the name of the nearest known face to each, or ``UNKNOWN``."""
        hits = [self.index.search(z_D, 1)[0] for z_D in self.embed(crops)]
        return [hit.label if hit.distance <= self.far else UNKNOWN for hit in hits]


def enrolled(
    folder: Path, look: Callable[[Bytes], Found], embed: Embed, side: int, far: float | None = None
) -> Known:
    """Return those whose pictures are in a folder of folders, one a person.

    The surest face of each picture counts; ``far`` is by default the distance that tells pictures
    of one person best from those of two. Raises UsageError for somebody whose face is never found.
    """
    crops: list[Bytes] = []
    names: list[str] = []
    files = {file: file.parent.relative_to(folder).as_posix() for file in pictures_in(folder)}
    for file, name in files.items():
        image_HW3 = np.array(open_picture(file, "RGB"))
        crops += (faces := upright(image_HW3, look(image_HW3), side)[:1])
        names += [name] * len(faces)
    for name in sorted({*files.values()} - {*names}):
        raise UsageError(
            f"no face is found in any picture of {folder / name} - allowed: clear pictures of one "
            "face - do: add another"
        )
    index = Index(embed(crops).cpu(), tuple(names), tuple(names))
    return Known(embed, index, apart(index) if far is None else far)


def apart(index: Index) -> float:
    """Return the distance with the fewest errors, same pairs beyond it and others within.

    Both kinds weigh alike; of equally good ones it is the largest.
    """
    distance_NN = squared_distances(index.z_ND, index.z_ND).sqrt()
    labels = np.array(index.labels)
    upper = torch.ones_like(distance_NN, dtype=torch.bool).triu(1)
    same_NN = torch.from_numpy(labels[:, None] == labels[None])
    same, other = (distance_NN[upper & mask] for mask in (same_NN, ~same_NN))
    if not len(same) or not len(other):
        raise UsageError(
            f"{len(set(index.labels))} people with {len(labels)} faces do not say how far faces of "
            "one person are apart - allowed: two people, one of them with two pictures - do: add "
            "pictures, or give the distance"
        )
    tried = torch.cat([same, other]).sort().values
    errors = [float((same > d).double().mean() + (other <= d).double().mean()) for d in tried]
    best = min(range(len(errors)), key=lambda place: (errors[place], -place))
    return float(tried[best])


def load_embedding(folder: str | Path) -> tuple[Embed, int]:
    """Return what embeds faces with a run of retrieval/fewshot, and the side of the faces.

    Raises UsageError for another run.
    """
    from dlplatform.checkpoint import load_models
    from trainers.retrieval.fewshot import FewShot

    task, models = load_models(folder)
    if not isinstance(task, FewShot):
        raise UsageError(
            f"{folder} trained {type(task).__name__}, which has no distance of pictures - allowed: "
            "runs of retrieval/fewshot - do: name another run"
        )
    channels, side = task.domains.channels, task.side

    def embed(crops: Sequence[Bytes]) -> Tensor:
        modes = [Image.fromarray(crop).convert("L" if channels == 1 else "RGB") for crop in crops]
        x_BHWC = np.stack([np.asarray(one).reshape(side, side, channels) for one in modes])
        return embedded(models["net"], torch.from_numpy(x_BHWC).movedim(-1, 1).float() / 255)

    return embed, side

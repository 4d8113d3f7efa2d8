"""Faces of known people: upright, the nearest one's name, strangers, and who cannot be enrolled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from dlplatform.checkpoint import Checkpoint, make_task, weights_of
from dlplatform.errors import UsageError
from trainers.data.instances import Found
from trainers.data.scenes import Bytes
from trainers.pipeline.frame import Frame, Pipeline, detector, head
from trainers.pipeline.known import UNKNOWN, Known, aligner, apart, enrolled, load_embedding
from trainers.pipeline.tracker import Tracker
from trainers.pipeline.watch import Votes
from trainers.retrieval.index import Index
from trainers.synth.faces import portrait
from trainers.synth.faces_scene import Look, face_film

SIDE, PEOPLE = 32, 4
SEEN: dict[bytes, Found] = {}


def shot(who: int, number: int) -> Bytes:
    """Draw somebody, and remember where the face is."""
    drawn = portrait(0, "gallery", who, number)
    SEEN[drawn.image_HW3.tobytes()] = Found(
        drawn.box_4[None], torch.zeros(1).long(), torch.ones(1), joints_NJ3=drawn.marks_J3[None]
    )
    return drawn.image_HW3


def look(image_HW3: Bytes) -> Found:
    """Find the face that was drawn: a detector that needs no training."""
    none = Found(torch.zeros(0, 4), torch.zeros(0).long(), torch.zeros(0))
    return SEEN.get(image_HW3.tobytes(), none)


def embed(crops: Sequence[Bytes]) -> torch.Tensor:
    """Return coarse colours: for pictures in one light they tell people apart."""
    x_BHWC = torch.from_numpy(np.stack(crops)[:, 4:-4, 4:-4]).float() / 255
    z_BD = functional.adaptive_avg_pool2d(x_BHWC.movedim(-1, 1), 4).flatten(1)
    return functional.normalize(z_BD - 0.6, dim=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for who in range(PEOPLE):
        (tmp_path / "known" / f"person {who}").mkdir(parents=True)
        for number in range(3):
            path = tmp_path / "known" / f"person {who}" / f"{number}.png"
            Image.fromarray(shot(who, number)).save(path)
    return tmp_path / "known"


def test_people_are_named_and_strangers_are_not(folder: Path) -> None:
    known = enrolled(folder, look, embed, SIDE, far=2.0)
    stages = {"detector": detector(look), "faces": aligner(SIDE), "names": head("names", known)}
    pipeline = Pipeline({**stages, "tracker": Tracker()})
    for who in range(PEOPLE):
        frame = pipeline(Frame(shot(who, 7), source=f"camera {who}"))
        assert frame.crops[0].shape == (SIDE, SIDE, 3)
        assert frame.said["names"] == [f"person {who}"]
    usual = enrolled(folder, look, embed, SIDE)
    assert 0 < usual.far < 1 and len(usual.index.names) == 3 * PEOPLE
    strict = Known(known.embed, known.index, far=0.0)
    assert strict(pipeline(Frame(shot(0, 8))).crops) == [UNKNOWN]
    empty = np.zeros((SIDE, SIDE, 3), np.uint8)
    assert pipeline(Frame(empty)).said["names"] == ()


def test_a_track_is_called_what_it_is_called_most() -> None:
    votes = Votes()
    for word in ("Kim", "Lee", "Kim"):
        votes.add(Frame(np.zeros((2, 2, 3), np.uint8), ids=(4, -1), said={"names": [word, "Ann"]}))
    assert votes.record() == {"4": {"names": "Kim"}}


def test_the_distance_of_strangers_is_what_tells_pairs_apart() -> None:
    angle_N = torch.tensor([0.0, 0.3, 1.2, 1.5])
    z_ND = torch.stack([angle_N.cos(), angle_N.sin()], 1)
    far = apart(Index(z_ND, ("",) * 4, ("a", "a", "b", "b")))
    assert far == pytest.approx(2 * np.sin(0.15), abs=1e-3)
    with pytest.raises(UsageError, match="1 people with 4 faces"):
        apart(Index(z_ND, ("",) * 4, ("a",) * 4))


def test_who_cannot_be_enrolled_is_named(folder: Path) -> None:
    (folder / "nobody").mkdir()
    Image.new("RGB", (40, 40)).save(folder / "nobody" / "0.png")
    with pytest.raises(UsageError, match=r"no face is found in any picture of .*nobody"):
        enrolled(folder, look, embed, SIDE)
    bare = Found(torch.ones(1, 4), torch.zeros(1).long(), torch.ones(1))
    with pytest.raises(UsageError, match="faces without landmarks"):
        enrolled(folder, lambda image: bare, embed, SIDE)


def test_a_run_of_few_shot_retrieval_embeds_faces(tmp_path: Path) -> None:
    for name, more in (("retrieval/fewshot", {"side": SIDE}), ("face/detection", {})):
        settings = {"name": name, **more}
        weights = weights_of(make_task(settings).models())
        Checkpoint(0, weights, settings={"task": settings}).save(tmp_path / name)
    embed, side = load_embedding(tmp_path / "retrieval/fewshot")
    z_ND = embed([np.zeros((side, side, 3), np.uint8), shot(0, 0)[:side, :side]])
    assert side == SIDE and z_ND.norm(dim=1).tolist() == pytest.approx([1, 1], abs=1e-4)
    with pytest.raises(UsageError, match="trained Faces, which has no distance"):
        load_embedding(tmp_path / "face/detection")


def test_people_of_portraits_come_in_films() -> None:
    one, other = (
        face_film(1, people=2, seconds=3, rate=2, look=Look(people=3), pool=pool)
        for pool in ("gallery", "")
    )
    assert [who.tolist() for who in one.who] == [who.tolist() for who in other.who]
    pairs = zip(one.frames, other.frames, one.who, strict=True)
    shown = [(first != second).any() for first, second, who in pairs if len(who)]
    assert shown and all(shown)

"""``dlp predict`` with every detector on a picture, a folder, a moving picture and a film."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectors import begun, certain
from PIL import Image

from dlplatform.checkpoint import Checkpoint, make_task, weights_of
from launch.saved import predict
from trainers.blocks.detector import Detector
from trainers.pipeline.frame import Frame
from trainers.pipeline.sinks import Reel
from trainers.pipeline.sources import open_source

PLACES = {"width": 16, "towers": 1}
STAGES = {"hidden": 16}
DETECTORS: dict[str, dict[str, Any]] = {
    "human/instances": PLACES,
    "human/pose": PLACES,
    "human/state": PLACES,
    "face/detection": PLACES,
    "zoo/rcnn": {"proposed": 20},
    "zoo/fast_rcnn": {**STAGES, "proposed": 20},
    "zoo/faster_rcnn": STAGES,
    "zoo/mask_rcnn": STAGES,
    "zoo/refine_rcnn": {**STAGES, "shared_px": 16},
}
WIDE, HIGH = 96, 80


def saved(name: str, folder: Path) -> Path:
    """Write the folder of a run that has learnt nothing and answers all the same."""
    settings = {"name": name, "side": 64, "shown": 0.0, "most": 3, **DETECTORS[name]}
    task = make_task(settings)
    assert isinstance(task, Detector)
    models = begun(task)
    if "width" in settings:
        certain(models)
    Checkpoint(0, weights_of(models), settings={"task": settings}).save(folder)
    return folder


def written(folder: Path) -> list[Path]:
    """Write a picture, a folder of two, a GIF and a film of three frames."""
    random = np.random.RandomState(0)
    coarse = random.randint(0, 255, (3, HIGH // 8, WIDE // 8, 3)).astype(np.uint8)
    images = [Image.fromarray(one).resize((WIDE, HIGH)) for one in coarse]
    paths = [folder / "one.png", folder / "some", folder / "moving.gif", folder / "film.mp4"]
    images[0].save(paths[0])
    paths[1].mkdir()
    for number, image in enumerate(images[:2]):
        image.save(paths[1] / f"{number}.jpg")
    for path in paths[2:]:
        reel = Reel(path)
        for number, image in enumerate(images):
            reel.add(image, Frame(np.array(image), number / 10))
        reel.close()
    return paths


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
def test_pictures_folders_and_films_are_answered(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.set_num_threads(1)
    run, paths = saved(name, tmp_path / "run"), written(tmp_path)
    assert predict([f"run={run}", *map(str, paths), "--json"]) == 0
    one, first, second, moving, film = json.loads(capsys.readouterr().out)
    blurs = name == "zoo/refine_rcnn"
    for told, file in ((one, paths[0]), (first, paths[1] / "0.jpg"), (second, paths[1] / "1.jpg")):
        assert told["file"] == str(file) and Image.open(told["picture"]).width >= WIDE
        assert Path(told["picture"]).parent == file.parent / ("blurred" if blurs else "found")
        assert all(len(each["box"]) == 4 for each in told["regions" if blurs else "objects"])
    assert sum(len(one["regions" if blurs else "objects"]) for one in (one, first, second)) > 0
    for told in (moving, film):
        drawn = list(open_source(told["picture"]).frames)
        lines = Path(told["audit" if blurs else "lines"]).read_text().splitlines()
        assert len(drawn) == len(lines) == told["speed"]["frames"] == 3
        rows = [json.loads(line)["regions" if blurs else "objects"] for line in lines]
        assert sum(map(len, rows)) > 0
        assert not blurs or sum(map(len, rows)) == told["regions"]

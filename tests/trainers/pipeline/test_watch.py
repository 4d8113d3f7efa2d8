"""From files to lines and drawings: what comes in, what goes out, what is refused in one line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dlplatform.errors import EnvironmentMissing, UsageError
from trainers.data.instances import Found, Kinds
from trainers.data.scenes import Bytes
from trainers.data.skeletons import STATES
from trainers.pipeline.events import Rule
from trainers.pipeline.frame import Frame, Pipeline, Speed, cropper, detector, head
from trainers.pipeline.sinks import Drawing, Film, JsonLines, draw_frame
from trainers.pipeline.sources import open_source
from trainers.pipeline.tracker import Tracker
from trainers.pipeline.watch import Watching, answer, watch

KINDS = Kinds(("person",), (), None, STATES)
HIGH, WIDE, RATE, COUNT = 64, 96, 10, 26
RED = (220, 30, 30)


def drawn(time: int) -> Bytes:
    """Draw a red block that walks for a second and then lies."""
    image_HW3 = np.full((HIGH, WIDE, 3), 90, np.uint8)
    x0, y0, x1, y1 = place(time)
    image_HW3[y0:y1, x0:x1] = RED
    image_HW3[0, time] = 255  # files of moving pictures leave equal frames out
    return image_HW3


def place(time: int) -> tuple[int, int, int, int]:
    x = 8 + 4 * min(time, 10)
    return (x, 10, x + 14, 50) if time < 10 else (x, 36, x + 40, 52)


def look(image_HW3: Bytes) -> Found:
    """Find the red block: a detector without training, whatever coding did to the colours."""
    red_HW = (image_HW3[..., 0] > 150) & (image_HW3[..., 1] < 100)
    rows, columns = np.nonzero(red_HW)
    if not len(rows):
        return Found(torch.zeros(0, 4), torch.zeros(0).long(), torch.zeros(0))
    box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    lies = box[2] - box[0] > box[3] - box[1]
    states_S = torch.full((len(STATES),), 0.02)
    states_S[STATES.index("Lying" if lies else "Walking")] = 0.9
    return Found(
        torch.tensor([box]).float(), torch.zeros(1).long(), torch.tensor([0.9]),
        states_NS=states_S[None],
    )  # fmt: skip


def frames(count: int = COUNT) -> list[Frame]:
    return [Frame(drawn(t), t / RATE, "film", t) for t in range(count)]


def save_gif(path: Path, count: int = COUNT) -> Path:
    first, *others = (Image.fromarray(drawn(time)) for time in range(count))
    first.save(path, save_all=True, append_images=others, duration=1000 // RATE, loop=0)
    return path


def save_film(path: Path, count: int = COUNT) -> Path:
    film = Film(path, (WIDE, HIGH))
    for time in range(count):
        film.add(Image.fromarray(drawn(time)), time / RATE)
    film.close()
    return path


def test_a_pipeline_sends_frames_through_detector_crops_head_and_tracker() -> None:
    def brightness(crops: object) -> list[float]:
        return [float(crop.mean()) for crop in crops]  # type: ignore[attr-defined]

    stages = {
        "detector": detector(look),
        "crops": cropper(16, factor=1.0),
        "brightness": head("brightness", brightness),
        "tracker": Tracker(),
    }
    pipeline = Pipeline(stages)
    done = list(pipeline.run(frames(12)))
    assert [frame.ids for frame in done] == [(1,)] * 12
    crop_HW3 = done[0].crops[0]
    assert crop_HW3.shape == (16, 16, 3)
    # the block is 14 of 40 pixels wide: the square around it shows grey on both sides
    assert (crop_HW3[8, 8] == RED).all() and (crop_HW3[8, 15] == 90).all()
    assert done[0].said["brightness"] == [pytest.approx(crop_HW3.mean())]
    assert pipeline.speed.frames == 12 and pipeline.speed.rate > 0
    assert set(pipeline.speed.shares()) == {"reading", *stages}
    assert sum(pipeline.speed.shares().values()) == pytest.approx(1)


def test_crops_are_black_beyond_the_picture() -> None:
    found = Found(torch.tensor([[-8.0, 0, 8, 16]]), torch.zeros(1).long(), torch.ones(1))
    (crop_HW3,) = cropper(16, 1.0)(Frame(np.full((HIGH, WIDE, 3), 90, np.uint8), found=found)).crops
    assert (crop_HW3[:, :7] == 0).all() and (crop_HW3[1:, 9:] == 90).all()


def test_speed_is_told_in_words() -> None:
    speed = Speed()
    speed.add("detector", 0.9)
    speed.add("tracker", 0.1)
    speed.frames = 10
    assert str(speed) == "10.0 frames/s, detector 90%"
    assert speed.record()["shares"] == {"detector": 0.9, "tracker": 0.1}


@pytest.mark.parametrize("save", [save_gif, save_film])
def test_a_fall_in_a_film_is_told_drawn_and_written(
    save: Callable[[Path], Path], tmp_path: Path
) -> None:
    path = save(tmp_path / ("fall.gif" if save is save_gif else "fall.mp4"))
    told = answer(path, look, KINDS, Watching(rules=(Rule(),)))
    (alert,) = told["alerts"]
    assert told["tracks"] == 1 and 2.0 <= alert["time"] <= 2.5
    assert 0.9 <= alert["latency"] <= 1.5
    assert [one["state"] for one in told["states"]["1"]] == ["Walking", "Lying"]
    assert told["seen"] == {"person": [[0, 3]]}
    assert told["speed"]["frames"] == COUNT and "detector" in told["speed"]["shares"]
    lines = [json.loads(line) for line in Path(told["lines"]).read_text().splitlines()]
    assert len(lines) == COUNT and lines[-1]["time"] == pytest.approx(2.5, abs=0.02)
    (one,) = lines[20]["objects"]
    assert one["track"] == 1 and one["state"] == "Lying"
    np.testing.assert_allclose(one["box"], place(20), atol=2)
    assert sum("alerts" in line for line in lines) == 1
    again = open_source(told["picture"])
    assert again.moving and len(list(again.frames)) == COUNT


def test_a_picture_is_answered_as_before(tmp_path: Path) -> None:
    path = tmp_path / "still.png"
    Image.fromarray(drawn(0)).save(path)
    told = answer(path, look, KINDS)
    assert [one["state"] for one in told["objects"]] == ["Walking"]


def test_a_folder_is_pictures_or_with_a_rate_a_film(tmp_path: Path) -> None:
    for time in range(3):
        Image.fromarray(drawn(time)).save(tmp_path / f"{time}.png")
    apart, film = open_source(tmp_path), open_source(tmp_path, rate=5)
    assert not apart.moving and film.moving
    assert [Path(frame.source).name for frame in apart.frames] == ["0.png", "1.png", "2.png"]
    assert [frame.time for frame in film.frames] == [0, 0.2, 0.4]


def test_what_cannot_be_read_ends_in_one_line(tmp_path: Path) -> None:
    wrong = {"film.mp4": b"no film", "moving.gif": b"GIF89a nothing", "still.png": b"no picture"}
    for name, inside in wrong.items():
        (tmp_path / name).write_bytes(inside)
        with pytest.raises(UsageError, match=f"{name} cannot be read as") as caught:
            list(open_source(tmp_path / name).frames)
        assert "\n" not in str(caught.value)
    cut = save_film(tmp_path / "cut.mp4")
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    with pytest.raises(UsageError, match=r"cut.mp4 cannot be read as a film"):
        list(open_source(cut).frames)
    for name in ("camera:x", "camera:99", "nowhere.mp4"):
        with pytest.raises(UsageError, match=rf"{name} .*allowed: "):
            list(open_source(name).frames)
    with pytest.raises(UsageError, match=r"found.txt cannot be drawn - allowed: a folder, .gif"):
        Drawing(tmp_path / "found.txt", KINDS)


def test_without_pyav_films_are_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "film.mp4").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(EnvironmentMissing, match=r"pip install 'dlplatform\[video\]'"):
        list(open_source(tmp_path / "film.mp4").frames)


def test_lines_hold_what_heads_say(tmp_path: Path) -> None:
    sink = JsonLines(tmp_path / "said" / "lines.jsonl", KINDS)
    frame = detector(look)(drawn_frame := frames(1)[0])
    sink(Frame(drawn_frame.image_HW3, 1.5, "camera", 7, frame.found, (3,), said={
        "name": ["Kim"], "vector": torch.tensor([[0.5, 1.0]]),
    }))  # fmt: skip
    sink.close()
    told = json.loads(sink.path.read_text())
    assert (told["source"], told["frame"], told["time"]) == ("camera", 7, 1.5)
    (one,) = told["objects"]
    assert (one["name"], one["vector"], one["track"]) == ("Kim", [0.5, 1.0], 3)


def test_drawings_go_to_a_folder_too_and_differ_by_track(tmp_path: Path) -> None:
    sink = Drawing(tmp_path / "drawn", KINDS)
    frame = detector(look)(frames(1)[0])
    sink(frame)
    assert [path.name for path in (tmp_path / "drawn").iterdir()] == ["film_000000.png"]
    pictures = [
        draw_frame(Frame(frame.image_HW3, found=frame.found, ids=(track,)), KINDS)
        for track in (1, 2)
    ]
    assert pictures[0].tobytes() != pictures[1].tobytes()


def test_a_camera_is_watched_for_some_seconds_only(tmp_path: Path) -> None:
    path = save_gif(tmp_path / "long.gif", 15)
    told = watch(path, look, KINDS, Watching(seconds=1.0, folder=tmp_path / "here"))
    assert told["speed"]["frames"] == 10 and Path(told["lines"]).parent == tmp_path / "here"

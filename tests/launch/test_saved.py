"""``dlp predict``, ``eval`` and ``export`` on what a run saved: files, films, devices."""

from __future__ import annotations

import json
import os
import sys
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from dlplatform.checkpoint import Checkpoint, load_models, make_task, weights_of
from dlplatform.errors import EnvironmentMissing, UsageError
from launch.saved import evaluate, export, predict
from trainers.synth.imu import CHANNELS


def saved(folder: Path, name: str, **fields: Any) -> str:
    """Write the checkpoint of an untrained task; return the word that names the run."""
    settings = {"task": {"name": name, **fields}}
    torch.manual_seed(0)
    models = make_task(settings["task"]).models()
    Checkpoint(position=1, weights=weights_of(models), settings=settings).save(folder)
    return f"run={folder}"


@pytest.fixture(scope="module")
def segnet(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.set_num_threads(1)
    return saved(tmp_path_factory.mktemp("segnet"), "zoo/segnet", width=4)


def answers(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    assert predict([*words, "which=latest", "--json"]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


def test_a_folder_stands_for_its_pictures(
    segnet: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("b.png", "a.JPG", "c.bmp"):
        Image.new("RGB", (96, 48), "grey").save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    found = answers(capsys, segnet, str(tmp_path), str(tmp_path / "c.bmp"))
    names = [Path(one["file"]).name for one in found]
    assert names == ["a.JPG", "b.png", "c.bmp", "c.bmp"]
    assert all(Image.open(one["overlay"]).size == (96, 48) for one in found)
    again = answers(capsys, segnet, str(tmp_path))
    assert [Path(one["file"]).name for one in again] == names[:3], "answers are not asked for"


def test_a_folder_of_digits_gets_an_answer_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = saved(tmp_path / "run", "zoo/digits")
    (tmp_path / "digits").mkdir()
    for number in range(3):
        digit = Image.new("L", (28, 28))
        digit.paste(255, (12, 4, 14 + 3 * number, 24))
        digit.save(tmp_path / "digits" / f"{number}.png")
    found = answers(capsys, run, str(tmp_path / "digits"))
    assert len(found) == 3 and all(0 <= one["digit"] <= 9 for one in found)


def test_a_task_stands_for_its_newest_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    digit = Image.new("L", (28, 28))
    digit.paste(255, (12, 4, 16, 24))
    digit.save("seven.png")
    with pytest.raises(UsageError, match=r"^task=zoo/digits has no run in .* do: dlp train"):
        predict(["task=zoo/digits", "seven.png"])
    with pytest.raises(UsageError, match=r"^task=zoo/digit is not a task; closest: zoo/digits"):
        predict(["task=zoo/digit", "seven.png"])
    with pytest.raises(UsageError, match=r"^run=mine task=zoo/digits - allowed: one of them"):
        predict(["run=mine", "task=zoo/digits", "seven.png"])
    older, newer, other = Path("outputs/mine"), Path("multirun/digits/now/1"), Path("outputs/last")
    for age, folder in enumerate((other, newer, older)):
        saved(folder, "zoo/segnet" if folder == other else "zoo/digits")
        os.utime(folder / "checkpoints" / "latest" / "state.json", (1e9 - age, 1e9 - age))
    torn = Path("outputs/torn/checkpoints/latest/state.json")
    torn.parent.mkdir(parents=True)
    torn.write_text("{")
    assert predict(["task=zoo/digits", "seven.png", "--json"]) == 0
    told = capsys.readouterr()
    assert told.err == f"run={newer}\n" and 0 <= json.loads(told.out)[0]["digit"] <= 9
    assert export(["task=zoo/digits", "digits.onnx"]) == 0 and Path("digits.onnx").exists()


def test_folders_that_cannot_be_answered(segnet: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no pictures - allowed: \.bmp .* do: name"):
        predict([segnet, str(tmp_path)])
    (tmp_path / "street.png").write_text("no picture")
    with pytest.raises(UsageError, match=r"street.png cannot be read as an image"):
        predict([segnet, str(tmp_path)])


def test_a_moving_picture_gets_a_moving_answer(
    segnet: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    colours = ("red", "green", "blue")
    first, *others = (Image.new("RGB", (96, 48), colour) for colour in colours)
    drive = tmp_path / "drive.gif"
    first.save(drive, save_all=True, append_images=others, duration=[100, 200, 300])
    (answer,) = answers(capsys, segnet, str(drive))
    assert set(answer) == {"file", "shares", "overlay"}
    assert sum(answer["shares"].values()) == pytest.approx(1, abs=1e-3)
    assert answer["overlay"] == str(tmp_path / "segmented" / "drive_overlay.gif")
    with Image.open(answer["overlay"]) as film:
        assert (film.n_frames, film.size) == (3, (96, 48))
        seen, durations = [], []
        for number in range(3):
            film.seek(number)
            seen.append(film.convert("RGB").getpixel((5, 5)))
            durations.append(film.info["duration"])
    assert durations == [100, 200, 300] and len(set(seen)) == 3
    drive.write_bytes(drive.read_bytes()[:150])
    with pytest.raises(UsageError, match=r"drive.gif cannot be read as an image"):
        predict([segnet, str(drive), "which=latest"])


def test_a_picture_that_stands_still_in_a_gif_is_a_picture(
    segnet: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (96, 48), "grey").save(tmp_path / "still.gif")
    (answer,) = answers(capsys, segnet, str(tmp_path / "still.gif"))
    assert {"classes", "overlay", "lane", "free"} <= set(answer)


@pytest.mark.parametrize("verb", [predict, evaluate])
def test_a_device_that_is_not_there_or_none_at_all(
    segnet: str, tmp_path: Path, verb: Callable[[list[str]], int]
) -> None:
    Image.new("RGB", (96, 48)).save(tmp_path / "a.png")
    words = [segnet, *([str(tmp_path)] if verb is predict else [])]
    with pytest.raises(UsageError, match="device=gpu cannot work - allowed: auto, cpu"):
        verb([*words, "device=gpu"])
    with pytest.raises(EnvironmentMissing, match=r"^device=cuda:99 on a machine with \d+ GPU"):
        verb([*words, "device=cuda:99"])


GPU = pytest.param("cuda", marks=pytest.mark.gpu)


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_a_run_is_scored_on_the_device_that_is_asked_for(
    device: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = saved(tmp_path, "zoo/digits")
    scores = []
    for words in ([], [f"device={device}"]):
        assert evaluate([run, *words, "--json"]) == 0
        scores.append(json.loads(capsys.readouterr().out)["scores"])
    assert scores[1] == pytest.approx(scores[0], rel=1e-3)


TASKS = (
    *("human/sensors", "retrieval/fewshot", "road/deformable", "speech/digits", "zoo/dcgan"),
    *("zoo/digits", "zoo/dqn", "zoo/nic", "zoo/segnet", "zoo/textgen", "zoo/vgg"),
)


def question(name: str, folder: Path) -> str:
    """Write a file that a task answers; return its path."""
    path = folder / "asked.png"
    picture = Image.new("RGB", (64, 64))
    picture.paste((255, 255, 255), (28, 10, 36, 54))
    picture.save(path)
    if name == "human/sensors":
        path = folder / "asked.csv"
        draw = np.random.default_rng(0)
        rows = [",".join(f"{value:.3f}" for value in draw.normal(size=11)) for _ in range(200)]
        path.write_text("\n".join([",".join(CHANNELS), *rows]))
    if name == "speech/digits":
        path = folder / "asked.wav"
        with wave.open(str(path), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            noise = np.random.default_rng(0).integers(-9000, 9000, 8000, np.int16)
            file.writeframes(noise.tobytes())
    if name == "zoo/textgen":
        path = folder / "asked.txt"
        path.write_text("나")
    return str(path)


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("name", TASKS)
def test_every_task_answers_on_the_device_that_is_asked_for(
    name: str, device: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, asked = saved(tmp_path / "run", name), question(name, tmp_path)
    assert predict([run, asked, f"device={device}", "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert answer.pop("file") == asked and answer


def test_a_run_is_exported_to_a_file_that_answers_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, path = saved(tmp_path / "run", "zoo/digits"), tmp_path / "digits.onnx"
    assert export([run, str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert told["outputs"] == [one.name for one in session.get_outputs()]
    assert list(told["inputs"]) == [one.name for one in session.get_inputs()]
    x_BCHW = torch.rand(told["inputs"]["input0"])
    (answer,) = session.run(None, {"input0": x_BCHW.numpy()})
    _, models = load_models(run.removeprefix("run="))
    with torch.no_grad():
        np.testing.assert_allclose(answer, models["net"](x_BCHW).numpy(), atol=1e-4)


def test_what_cannot_be_exported(
    segnet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for words in ([], ["net.pt"], ["a.onnx", "b.onnx"], [str(tmp_path / "no" / "net.onnx")]):
        with pytest.raises(UsageError, match=r"dlp export .*allowed: one FILE.onnx in a folder"):
            export([segnet, *words])
    with pytest.raises(UsageError, match="a ImageCaption task cannot be exported - allowed: "):
        make_task({"name": "zoo/nic"}).export({})
    with pytest.raises(UsageError, match=r"a SegNet cannot be an ONNX file \(.* - allowed: what "):
        export([segnet, str(tmp_path / "net.onnx")])
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(EnvironmentMissing, match=r"no onnx - .* do: pip install dlplatform\[onnx"):
        export([segnet, str(tmp_path / "net.onnx")])


def test_an_answer_too_long_for_a_table_is_cut() -> None:
    from launch.saved import CELL, _short

    assert _short("a short one") == "a short one"
    cut = _short("0.1234 " * 1000)
    assert len(cut) < CELL + 40 and cut.endswith("0.1234 ... (--json: all of it)")

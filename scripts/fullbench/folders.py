"""Small folders of made-up data in the public formats that recipes read.

Pictures are of the usual size and as hard to decode as photographs; a few of them are there under
many names (hard links), for what counts is the time to read one.

Shape legend: H height, W width, 3 RGB, N pictures or windows, T time, S samples.
"""

from __future__ import annotations

import json
import os
import wave
from collections.abc import Iterable
from itertools import cycle
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Random = np.random.RandomState
PHOTO, FACE, ROAD, STREET = (400, 500), (218, 178), (360, 480), (1024, 2048)
"""Height and width in pixels, as in ImageNet, CelebA, CamVid and Cityscapes."""
WORDS, WORD_TIMES = 8800, 5
"""The vocabulary of COCO captions, and how often each word has to come."""
WAV_RATE = 20_000
SAID = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def photo(random: Random, size: tuple[int, int]) -> Image.Image:
    """Return a picture with large areas, fine structure and noise."""
    height, width = size
    total_HW3 = random.normal(0, 6, (height, width, 3))
    for cells, share in ((5, 0.7), (40, 0.3)):
        rough = Image.fromarray(random.randint(0, 256, (cells, cells, 3)).astype(np.uint8))
        total_HW3 += share * np.asarray(rough.resize((width, height), Image.Resampling.BICUBIC))
    return Image.fromarray(total_HW3.clip(0, 255).astype(np.uint8))


def photos(folder: Path, count: int, size: tuple[int, int], end: str = "jpg") -> list[Path]:
    """Write so many different pictures into a new folder."""
    folder.mkdir(parents=True)
    random, paths = Random(1), [folder / f"{n:03}.{end}" for n in range(count)]
    for path in paths:
        photo(random, size).save(path, quality=90)
    return paths


def spread(paths: Iterable[Path], names: Iterable[Path]) -> None:
    """Give the pictures new names, in turn."""
    for path, name in zip(cycle(paths), names, strict=False):
        name.parent.mkdir(parents=True, exist_ok=True)
        os.link(path, name)


def classes(root: Path, count: int, each: int) -> list[Path]:
    """Return names of pictures in class folders."""
    return [root / f"class{k:04}" / f"{n:03}.jpg" for k in range(count) for n in range(each)]


def imagenet(root: Path) -> Path:
    """Write 1,000 classes with a picture each; the reader takes some to validate and to test."""
    home = root / "imagenet"
    spread(photos(root / "photos", 48, PHOTO), classes(home, 1000, 1))
    return home


def domains(root: Path) -> Path:
    """Write a source of 32 and a target of 8 classes."""
    home = root / "domains"
    names = [*classes(home / "source", 32, 12), *classes(home / "target", 8, 32)]
    spread(photos(root / "photos", 48, PHOTO), names)
    return home


def faces(root: Path) -> Path:
    """Write a folder of pictures without labels."""
    home = root / "faces"
    spread(photos(root / "photos", 48, FACE), [home / f"{n:06}.jpg" for n in range(600)])
    return home


def studio(root: Path) -> Path:
    """Write pictures to repaint, and four that stand for paintings."""
    home = root / "studio"
    names = [home / "content" / f"{n:06}.jpg" for n in range(200)]
    spread(photos(root / "photos", 48, (480, 640)), names)
    photos(home / "style", 4, (480, 640))
    return home


def captions(root: Path) -> Path:
    """Write COCO captions whose vocabulary is as large as the real one's."""
    words, home = [f"word{n}" for n in range(WORDS)] * WORD_TIMES, root / "coco"
    Random(2).shuffle(words)
    lines = [" ".join(words[at : at + 10]) for at in range(0, len(words), 10)]
    (home / "annotations").mkdir(parents=True)
    paths = photos(root / "photos", 48, (480, 640))
    for part, count in (("train2017", len(lines) // 5), ("val2017", 8)):
        names = [f"{n:012}.jpg" for n in range(count)]
        spread(paths, [home / part / name for name in names])
        told = {
            "images": [{"id": n, "file_name": name} for n, name in enumerate(names)],
            "annotations": [
                {"image_id": n % count, "caption": line}
                for n, line in enumerate(lines[: 5 * count])
            ],
        }
        (home / "annotations" / f"captions_{part}.json").write_text(json.dumps(told))
    return home


def class_maps(folder: Path, count: int, size: tuple[int, int], kinds: int) -> list[Path]:
    """Write class maps of blocks into a new folder."""
    folder.mkdir(parents=True)
    random, paths = Random(3), [folder / f"{n}.png" for n in range(count)]
    for path in paths:
        rough = Image.fromarray(random.randint(0, kinds, (12, 24)).astype(np.uint8))
        rough.resize(size[::-1], Image.Resampling.NEAREST).save(path)
    return paths


def camvid(root: Path) -> Path:
    """Write CamVid as SegNet's tutorial has it."""
    images, maps = (
        photos(root / "photos", 8, ROAD, "png"),
        class_maps(root / "maps", 8, ROAD, 11),
    )
    home = root / "camvid"
    for part, count in (("train", 48), ("val", 2), ("test", 2)):
        spread(images, [home / part / f"{n:03}.png" for n in range(count)])
        spread(maps, [home / f"{part}annot" / f"{n:03}.png" for n in range(count)])
    return home


def cityscapes(root: Path) -> Path:
    """Write Cityscapes: pictures of two million pixels."""
    images = photos(root / "photos", 3, STREET, "png")
    maps, home = class_maps(root / "maps", 3, STREET, 19), root / "cityscapes"
    for part, count in (("train", 24), ("val", 1)):
        names = [f"town/town_{n:06}_000019_" for n in range(count)]
        for paths, kind, end in (
            (images, "leftImg8bit", "leftImg8bit"), (maps, "gtFine", "gtFine_labelTrainIds")
        ):  # fmt: skip
            spread(paths, [home / kind / part / f"{name}{end}.png" for name in names])
    return home


def mnist(root: Path) -> Path:
    """Write the four idx files: blurred blobs, one place a class."""
    home, random = root / "mnist", Random(4)
    home.mkdir()
    for name, count in (("train", 6000), ("t10k", 500)):
        labels = random.randint(0, 10, count)
        images_NHW = random.randint(0, 64, (count, 28, 28))
        for n, label in enumerate(labels):
            images_NHW[n, 2 * label + 3 : 2 * label + 8, 8:20] += 180
        for kind, values in (("images-idx3", images_NHW), ("labels-idx1", labels)):
            head = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes()
            (home / f"{name}-{kind}-ubyte").write_bytes(head + values.astype(np.uint8).tobytes())
    return home


def sensors(root: Path) -> Path:
    """Write UCI-HAR: windows of six signals, each activity with a frequency of its own."""
    home, random = root / "har", Random(5)
    for part, count, people in (("train", 600, 10), ("test", 90, 3)):
        inside = home / part / "Inertial Signals"
        inside.mkdir(parents=True)
        labels = np.arange(count) % 6 + 1
        np.savetxt(home / part / f"y_{part}.txt", labels, "%d")
        np.savetxt(home / part / f"subject_{part}.txt", np.arange(count) * people // count, "%d")
        for name in (f"{kind}_{axis}" for kind in ("total_acc", "body_gyro") for axis in "xyz"):
            wave_NT = np.sin(np.arange(128) * labels[:, None] / 8)
            noise_NT = random.normal(0, 0.3, (count, 128))
            np.savetxt(inside / f"{name}_{part}.txt", wave_NT + noise_NT, "%.5f")
    return home


def speech(root: Path) -> Path:
    """Write wav files with transcripts beside them: a tone for each digit, ten speakers."""
    random = Random(6)
    for n in range(240):
        digits = random.randint(0, 10, random.randint(1, 8))
        path = root / "speech" / f"speaker{n % 10}" / f"{n:04}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".txt").write_text(" ".join(SAID[digit] for digit in digits))
        write_wav(path, np.concatenate([tone(digit) for digit in digits]), random)
    return root / "speech"


def tone(digit: int) -> NDArray[np.float64]:
    """Return 0.4 s of a digit's tone and a pause."""
    at_S = np.arange(int(0.4 * WAV_RATE)) / WAV_RATE
    return np.sin(2 * np.pi * (300 + 200 * digit) * at_S) * (at_S < 0.3)


def write_wav(path: Path, sound_S: NDArray[np.float64], random: Random) -> None:
    """Write a sound with some noise, in 16 bits."""
    noisy_S = 8000 * sound_S + random.normal(0, 100, len(sound_S))
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, WAV_RATE, 0, "NONE", ""))
        file.writeframes(noisy_S.astype("<i2").tobytes())


def text(root: Path) -> Path:
    """Write a text of 200,000 characters, whose words are as unevenly frequent as in books."""
    random, letters = Random(7), np.array(list("abcdefghijklmnopqrstuvwxyz"))
    known = ["".join(random.choice(letters, random.randint(2, 9))) for _ in range(2000)]
    picked = random.zipf(1.3, 60_000) % len(known)
    path = root / "book.txt"
    path.write_text(" ".join(known[n] for n in picked)[:200_000])
    return path

"""The idx reader: plain and gz files, and what it says about broken ones (spec C1-7)."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dlplatform.errors import UsageError
from trainers.data.digits import load_digits
from trainers.data.mnist import load_mnist, read_idx
from trainers.zoo.digits import Digits


def idx(values: np.ndarray) -> bytes:
    head = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    return head + values.astype(np.uint8).tobytes()


def write_set(folder: Path, end: str = "", mark: str = "-") -> None:
    for name, count in (("train", 240), ("t10k", 60)):
        labels = np.arange(count) % 10
        images = np.zeros((count, 28, 28))
        images[np.arange(count), labels, 0] = 255
        for stem, kind, values in (("images", "idx3", images), ("labels", "idx1", labels)):
            content = idx(values)
            path = folder / f"{name}-{stem}{mark}{kind}-ubyte{end}"
            path.write_bytes(gzip.compress(content) if end else content)


@pytest.mark.parametrize(("end", "mark"), [("", "-"), (".gz", "-"), ("", "."), (".gz", ".")])
def test_reads_every_spelling(tmp_path: Path, end: str, mark: str) -> None:
    write_set(tmp_path, end, mark)
    (images, labels), (test_images, test_labels) = load_mnist(tmp_path)
    assert images.shape == (240, 28, 28) and test_images.shape == (60, 28, 28)
    assert (images[np.arange(240), labels, 0] == 255).all()
    assert test_labels.tolist() == [n % 10 for n in range(60)]


def test_task_trains_on_the_folder(tmp_path: Path) -> None:
    write_set(tmp_path)
    task = Digits(data=str(tmp_path))
    x, labels = task.batch("train", 3)
    assert x.shape == (16, 1, 28, 28) and labels.max() <= 9
    sizes = {split: len(samples) for split, samples in load_digits(str(tmp_path)).items()}
    assert sizes == {"train": 220, "val": 20, "test": 60}
    assert task.predict(task.models(), _drawn_png(tmp_path))["digit"] in range(10)


def _drawn_png(folder: Path) -> Path:
    from PIL import Image, ImageDraw

    image = Image.new("L", (90, 120), 255)
    ImageDraw.Draw(image).line([(40, 20), (45, 100)], fill=0, width=8)
    image.save(folder / "one.png")
    return folder / "one.png"


def test_missing_folder_and_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere is not a folder - allowed"):
        load_mnist(tmp_path / "nowhere")
    write_set(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(UsageError, match="has no t10k-labels-idx1-ubyte"):
        load_mnist(tmp_path)


BREAKS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda raw: b"", "starts with nothing"),
    "magic": (lambda raw: b"\x89PNG" + raw[4:], "starts with 89504e47"),
    "type": (lambda raw: raw[:2] + b"\x0d" + raw[3:], "starts with 00000d03"),
    "header": (lambda raw: raw[:9], "ends within its header"),
    "short": (lambda raw: raw[:-1], "holds 188159 values"),
    "long": (lambda raw: raw + b"\0", "holds 188161 values"),
    "size": (lambda raw: raw[:12] + struct.pack(">I", 2**31) + raw[16:], "where its header says"),
    "side": (lambda raw: idx(np.zeros((240, 27, 28))), "has shape"),
    "count": (lambda raw: idx(np.zeros((239, 28, 28))), "for 239 images"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_broken_file_is_refused(tmp_path: Path, name: str) -> None:
    write_set(tmp_path)
    change, message = BREAKS[name]
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UsageError, match=message):
        load_mnist(tmp_path)


@pytest.mark.parametrize("cut", [5, 12])
def test_broken_gz_is_refused(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(idx(np.zeros((4, 28, 28))))[:-cut])
    with pytest.raises(UsageError, match="cannot be read"):
        read_idx(path)
    path.write_bytes(b"not gz at all")
    with pytest.raises(UsageError, match="cannot be read"):
        read_idx(path)


def test_labels_above_nine_are_refused(tmp_path: Path) -> None:
    write_set(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(np.full(60, 10)))
    with pytest.raises(UsageError, match="labels above 9"):
        load_mnist(tmp_path)

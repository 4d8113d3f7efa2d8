"""CIFAR-10: both versions give the same, broken files are named, and no pickle is trusted."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlplatform.errors import UsageError
from trainers.data.cifar import TEST, TRAIN, cifar_folder, load_cifar
from trainers.zoo.resnet import ResnetPictures

COUNT = 20


def batch(seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.RandomState(seed)
    labels = random.permutation(np.arange(COUNT) % 10).astype(np.uint8)
    return labels, random.randint(0, 256, (COUNT, 3072)).astype(np.uint8)


def write_binary(folder: Path) -> None:
    for seed, name in enumerate((*TRAIN, TEST)):
        labels, rows = batch(seed)
        (folder / f"{name}.bin").write_bytes(np.column_stack([labels, rows]).tobytes())


def write_python(folder: Path, protocol: int = 2) -> None:
    for seed, name in enumerate((*TRAIN, TEST)):
        labels, rows = batch(seed)
        held = {b"data": rows, b"labels": labels.tolist(), b"batch_label": name.encode()}
        (folder / name).write_bytes(pickle.dumps(held, protocol))


@pytest.mark.parametrize("inner", ["", "cifar-10-batches-bin"])
def test_reads_the_binary_version(tmp_path: Path, inner: str) -> None:
    (tmp_path / inner).mkdir(exist_ok=True)
    write_binary(tmp_path / inner)
    task = ResnetPictures(data=str(tmp_path), batch_size=8)
    sizes = {split: len(task.samples(split)) for split in ("train", "val", "test")}
    assert sizes == {"train": 90, "val": 10, "test": 20}
    labels, rows = batch(5)
    test = task.samples("test")
    assert test.labels.tolist() == labels.tolist() and test.names[3] == "cat"
    assert np.array_equal(test.images_NCHW.numpy().reshape(COUNT, -1), rows)
    assert task.batch("train", 0)[0].shape == (8, 3, 32, 32)


@pytest.mark.parametrize("protocol", [2, 4])
def test_the_python_version_gives_the_same(tmp_path: Path, protocol: int) -> None:
    binary, pickled = tmp_path / "bin", tmp_path / "py"
    for folder in (binary, pickled):
        folder.mkdir()
    write_binary(binary)
    write_python(pickled, protocol)
    one, other = load_cifar(binary), load_cifar(pickled)
    for name in one:
        assert one[name].labels.equal(other[name].labels)
        assert one[name].images_NCHW.equal(other[name].images_NCHW)


def test_an_old_pickle_of_python_2_is_read(tmp_path: Path) -> None:
    """The published files name numpy.core and hold byte strings as Python 2 wrote them."""
    write_python(tmp_path)
    for name in (*TRAIN, TEST):
        path = tmp_path / name
        path.write_bytes(path.read_bytes().replace(b"numpy._core", b"numpy.core"))
    assert b"numpy.core.multiarray" in (tmp_path / TEST).read_bytes()
    assert len(load_cifar(tmp_path)["test"]) == COUNT


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_no_pickle_is_trusted(tmp_path: Path) -> None:
    write_python(tmp_path)
    trap = tmp_path / "trap"
    (tmp_path / TRAIN[2]).write_bytes(pickle.dumps({b"data": Evil(trap)}))
    with pytest.raises(UsageError, match=r"data_batch_3 is no batch of CIFAR \(it asks for posix"):
        load_cifar(tmp_path)
    assert not trap.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [("data_batch_2.bin", b"", "has 0 bytes, not a multiple of 3073"),
     ("test_batch.bin", b"\1" * 5000, "has 5000 bytes, not a multiple of 3073"),
     ("test_batch.bin", b"\x0b" * 3073, "has labels up to 11, not 0 to 9")],
)  # fmt: skip
def test_broken_binary_files_are_named(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    write_binary(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=re.escape(f"{name} {message}")):
        load_cifar(tmp_path)


@pytest.mark.parametrize(
    "held",
    [{}, [], {b"data": np.zeros((2, 3072)), b"labels": [0, 1]},
     {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]},
     {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, -1]},
     {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 10]},
     {b"data": np.zeros((2, 10), np.uint8), b"labels": [0, 1]}],
)  # fmt: skip
def test_broken_pickles_are_named(tmp_path: Path, held: object) -> None:
    write_python(tmp_path)
    (tmp_path / TEST).write_bytes(pickle.dumps(held))
    with pytest.raises(UsageError, match=r"^CIFAR file .*test_batch .* - allowed: whole files"):
        load_cifar(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    write_binary(tmp_path)
    (tmp_path / "data_batch_4.bin").unlink()
    with pytest.raises(UsageError, match=r"has no data_batch_4.bin - allowed: all of data_batch_1"):
        load_cifar(tmp_path)
    assert cifar_folder(tmp_path / "elsewhere") is None


def test_another_size_is_refused(tmp_path: Path) -> None:
    write_binary(tmp_path)
    with pytest.raises(UsageError, match=r"task.side=64 cannot work - allowed: 32, with CIFAR-10"):
        ResnetPictures(data=str(tmp_path), side=64).samples("train")

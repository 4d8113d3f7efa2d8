"""Reader of the MNIST idx files (plain or gz), also those of EMNIST-digits and its kin.

Format: http://yann.lecun.com/exdb/mnist - two zero bytes, a type byte, the number of
dimensions, each dimension as a big-endian int32, then the values.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dlplatform.errors import UsageError

SIDE = 28
UNSIGNED_BYTE = 0x08
Part = tuple[NDArray[np.uint8], NDArray[np.int64]]


def load_mnist(folder: Path) -> tuple[Part, Part]:
    """Return (images, labels) of the training part and of the test part.

    Raises UsageError when a file is missing, malformed or does not fit the others.
    """
    if not folder.is_dir():
        raise UsageError(f"task.data={folder} is not a folder - allowed: a folder with {_WANTED}")
    return _part(folder, "train"), _part(folder, "t10k")


_WANTED = "the four MNIST files train-images-idx3-ubyte, train-labels-…, t10k-… (plain or .gz)"


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Return the array in an idx file of unsigned bytes; raises UsageError when malformed."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise _broken(path, f"cannot be read ({error})") from error
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] != UNSIGNED_BYTE or not 1 <= raw[3] <= 3:
        raise _broken(path, f"starts with {raw[:4].hex() or 'nothing'}, not 00000801 or 00000803")
    head = 4 + 4 * raw[3]
    if len(raw) < head:
        raise _broken(path, f"ends within its header of {head} bytes")
    shape = struct.unpack(f">{raw[3]}I", raw[4:head])
    if len(raw) - head != prod(shape):
        raise _broken(path, f"holds {len(raw) - head} values where its header says {shape}")
    return np.frombuffer(raw, np.uint8, offset=head).reshape(shape).copy()


def _part(folder: Path, name: str) -> Part:
    image_path, label_path = _find(folder, f"{name}-images"), _find(folder, f"{name}-labels")
    images, labels = read_idx(image_path), read_idx(label_path)
    if images.ndim != 3 or images.shape[1:] != (SIDE, SIDE):
        raise _broken(image_path, f"has shape {images.shape}, not (N, {SIDE}, {SIDE})")
    if labels.shape != images.shape[:1]:
        raise _broken(label_path, f"has shape {labels.shape} for {len(images)} images")
    if len(labels) == 0 or labels.max() > 9:
        raise _broken(label_path, "has no labels, or labels above 9")
    return images, labels.astype(np.int64)


def _find(folder: Path, stem: str) -> Path:
    kind = "idx3" if stem.endswith("images") else "idx1"
    # Mirrors differ: some write a dot before the kind, as unzip on Windows once did.
    names = [f"{stem}{mark}{kind}-ubyte{end}" for mark in "-." for end in ("", ".gz")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UsageError(f"task.data={folder} has no {names[0]} - allowed: a folder with {_WANTED}")


def _broken(path: Path, what: str) -> UsageError:
    return UsageError(f"MNIST file {path} {what} - allowed: whole idx files - download it again")

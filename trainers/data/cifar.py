"""Reader of CIFAR-10: the binary version, and the Python version without trusting its pickles.

Format: https://www.cs.toronto.edu/~kriz/cifar.html - a record is a label byte and 3,072 bytes of
red, green and blue.

Shape legend: N pictures, C channels, H height, W width.
"""

from __future__ import annotations

import io
import pickle
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dlplatform.errors import UsageError
from trainers.data.digits import stratified
from trainers.data.samples import Samples

SIDE, RECORD = 32, 3 * 32 * 32
NAMES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST = "test_batch"
VALIDATION = 10
"""One in so many training pictures is for validation: 5,000 of 50,000."""
FOLDERS = ("", "cifar-10-batches-bin", "cifar-10-batches-py")
Part = tuple[NDArray[np.uint8], NDArray[np.uint8]]


def cifar_folder(folder: Path) -> Path | None:
    """Return the folder that holds CIFAR-10: this one, or the one its archive unpacks to."""
    for inner in FOLDERS:
        if any((folder / inner / f"{TRAIN[0]}{end}").is_file() for end in (".bin", "")):
            return folder / inner
    return None


@cache
def load_cifar(folder: Path) -> dict[str, Samples]:
    """Return the parts ``train``, ``val`` and ``test``; raises UsageError for malformed files."""
    train = _samples([_read(folder, name) for name in TRAIN])
    held, rest = stratified(train.labels, [len(train) // VALIDATION])
    return {
        "train": train.take(rest),
        "val": train.take(held),
        "test": _samples([_read(folder, TEST)]),
    }


def _read(folder: Path, name: str) -> Part:
    for path, reader in ((folder / f"{name}.bin", _binary), (folder / name, _pickled)):
        if path.is_file():
            labels, rows = reader(path)
            if len(rows) == 0 or labels.max() >= len(NAMES):
                raise _broken(path, f"has labels up to {labels.max(initial=0)}, not 0 to 9")
            return labels, rows
    raise UsageError(
        f"task.data={folder} has no {name}.bin - allowed: all of {', '.join((*TRAIN, TEST))}, each "
        "with .bin (the binary version) or without (the Python version) - unpack the archive again"
    )


def _binary(path: Path) -> Part:
    raw = np.fromfile(path, np.uint8)
    if len(raw) == 0 or len(raw) % (RECORD + 1):
        raise _broken(path, f"has {len(raw)} bytes, not a multiple of {RECORD + 1}")
    records = raw.reshape(-1, RECORD + 1)
    return records[:, 0], records[:, 1:]


def _pickled(path: Path) -> Part:
    try:
        held = _Plain(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        rows, labels = (np.asarray(held[key]) for key in (b"data", b"labels"))
    except (pickle.UnpicklingError, ValueError, TypeError, KeyError, EOFError) as error:
        raise _broken(path, f"is no batch of CIFAR ({error})") from error
    good = rows.dtype == np.uint8 and rows.shape[1:] == (RECORD,) and labels.dtype.kind == "i"
    if not good or labels.shape != rows.shape[:1] or (labels < 0).any() or (labels > 255).any():
        raise _broken(path, f"holds data of {rows.dtype}{rows.shape}, labels {labels.shape}")
    return labels.astype(np.uint8), rows


class _Plain(pickle.Unpickler):
    """Reads numpy arrays and plain values; a pickle that asks for anything else is refused."""

    ALLOWED = frozenset(
        {("_codecs", "encode"), ("numpy", "dtype"), ("numpy", "ndarray")}
        | {(f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")}
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no batch needs")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _samples(parts: list[Part]) -> Samples:
    labels = torch.from_numpy(np.concatenate([labels for labels, _ in parts]).astype(np.int64))
    images_NCHW = torch.from_numpy(np.concatenate([rows for _, rows in parts]))
    return Samples(images_NCHW.reshape(-1, 3, SIDE, SIDE), labels, NAMES)


def _broken(path: Path, what: str) -> UsageError:
    return UsageError(f"CIFAR file {path} {what} - allowed: whole files - unpack the archive again")

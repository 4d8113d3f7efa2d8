"""Handwritten digits as 28x28 grey images in fixed train, val and test parts.

The bundled set is the one of scikit-learn (1,797 digits of 8x8 pixels, UCI optdigits). Only its
file is read: importing scikit-learn would take longer than everything else here together.

Shape legend: N samples, H height, W width.
"""

from __future__ import annotations

import gzip
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from dlplatform.errors import EnvironmentMissing
from trainers.data.mnist import load_mnist
from trainers.data.samples import Samples
from trainers.pictures.ink import fit

SIDE = 28
NATIVE_SIDE = 8
TEST, VALIDATION = 360, 180
MNIST_VALIDATION = 12
"""One in so many training images of MNIST is for validation: 5,000 of 60,000."""
MNIST_BOX = 20


DIGITS = tuple("0123456789")


@cache
def load_digits(folder: str = "") -> dict[str, Samples]:
    """Return the parts ``train``, ``val`` and ``test``: bundled digits, or a folder of MNIST.

    Raises UsageError for a folder without whole MNIST files.
    """
    if folder:
        train, test = (_samples(*map(torch.from_numpy, part)) for part in load_mnist(Path(folder)))
        val, rest = stratified(train.labels, [len(train) // MNIST_VALIDATION])
        return {"train": train.take(rest), "val": train.take(val), "test": test}
    everything = _bundled()
    parts = zip(
        ("test", "val", "train"), stratified(everything.labels, [TEST, VALIDATION]), strict=True
    )
    return {name: everything.take(index) for name, index in parts}


def enlarge(x_NHW: Tensor) -> Tensor:
    """Resize images with values in [0, 1] to 28x28 bilinearly, rounded to uint8."""
    big_N1HW = functional.interpolate(x_NHW[:, None], size=(SIDE, SIDE), mode="bilinear")
    return (big_N1HW[:, 0] * 255).round().clamp(0, 255).to(torch.uint8)


def from_ink(ink: NDArray[np.float32], native: bool) -> Tensor:
    """Return what a user wrote as a uint8 image like those of the set.

    The bundled digits (``native``) fill the height of 8x8 pixels; those of MNIST fill a box of
    20 pixels in 28. A network is only sure of digits as large and as coarse as it has seen.
    """
    if native:
        return enlarge(torch.from_numpy(fit(ink, NATIVE_SIDE, NATIVE_SIDE))[None])[0]
    return torch.from_numpy(fit(ink, SIDE, MNIST_BOX) * 255).round().to(torch.uint8)


def stratified(labels: Tensor, sizes: list[int]) -> list[Tensor]:
    """Split indices into parts of these sizes and the rest, each with the classes in proportion.

    The split is fixed: no seed of a job changes which samples are held out.
    """
    # RandomState, not default_rng: numpy promises that its stream never changes.
    order = np.random.RandomState(0).permutation(len(labels))
    shuffled = labels.numpy()[order]
    rank = np.empty(len(order))
    for label in np.unique(shuffled):
        members = shuffled == label
        rank[members] = (np.arange(members.sum()) + 0.5) / members.sum()
    # Sorted by the rank within its class, any stretch holds all classes in proportion.
    spread = torch.from_numpy(order[np.argsort(rank, kind="stable")])
    return list(torch.split(spread, [*sizes, len(order) - sum(sizes)]))


def _bundled() -> Samples:
    spec = find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise EnvironmentMissing(
            "the bundled digits are part of scikit-learn, which is not installed - "
            "pip install scikit-learn, or set task.data to a folder with the MNIST files"
        )
    path = Path(spec.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")
    with gzip.open(path, "rt") as file:
        table = torch.from_numpy(np.loadtxt(file, delimiter=",", dtype=np.float32))
    small_NHW = table[:, :-1].reshape(-1, NATIVE_SIDE, NATIVE_SIDE) / 16
    return _samples(enlarge(small_NHW), table[:, -1].long())


def _samples(images_NHW: Tensor, labels: Tensor) -> Samples:
    return Samples(images_NHW[:, None], labels, DIGITS)
